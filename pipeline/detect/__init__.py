"""The search for triggers nobody told us about: what is found on calibration images alone, and how sure one can be of it."""
