"""Prefect only orchestrates: thin tasks around the stages of `pipeline`, and the command."""
