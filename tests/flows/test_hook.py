"""The door for MLflow's webhooks: what it lets in, and what it makes of that.  That MLflow itself comes through is in tests/servers."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from typing import Any

import pytest
from fastapi.testclient import TestClient

from flows import hook
from flows.hook import OLDEST, created, door, signed

SECRET, NOW = "of the hook", 1_800_000_000
BODY = json.dumps({"entity": "model_version", "action": "created", "data": {"name": "vendor", "version": "3", "tags": {}}}).encode()


def signature(body: bytes, *, secret: str = SECRET, sent: int = NOW, delivery: str = "d1") -> str:
    return "v1," + base64.b64encode(hmac.new(secret.encode(), f"{delivery}.{sent}.".encode() + body, hashlib.sha256).digest()).decode()


def test_what_is_signed_comes_in() -> None:
    assert signed(BODY, SECRET, signature=signature(BODY), sent=str(NOW), delivery="d1", now=NOW + 10)


@pytest.mark.parametrize(
    "wrong",
    [
        {"signature": ""},
        {"signature": signature(BODY, secret="another")},
        {"signature": signature(BODY).removeprefix("v1,")},
        {"signature": "é"},
        {"sent": str(NOW + 1)},
        {"sent": ""},
        {"sent": "²"},
        {"sent": "-1"},
        {"sent": "9" * 5000},
        {"delivery": "d2"},
        {"now": NOW + OLDEST + 1},
        {"now": NOW - OLDEST - 1},
    ],
)
def test_what_is_not_stays_outside(wrong: dict[str, Any]) -> None:
    given: dict[str, Any] = {"signature": signature(BODY), "sent": str(NOW), "delivery": "d1", "now": NOW} | wrong
    assert not signed(BODY, SECRET, **given)


def test_an_altered_message_stays_outside() -> None:
    assert not signed(BODY.replace(b"3", b"4"), SECRET, signature=signature(BODY), sent=str(NOW), delivery="d1", now=NOW)


def test_only_a_registered_version_is_reviewed() -> None:
    assert created(BODY) == "vendor/3"
    for other in (b"", b"[]", b"{}", b"null", BODY.replace(b"created", b"deleted"), BODY.replace(b'"3"', b'"3/x"'), BODY.replace(b'"3"', b'{"a": 1}'), b"\xff"):
        assert created(other) is None


def test_a_review_begins_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, dict[str, Any]]] = []

    async def run(deployment: str, **options: Any) -> Any:
        asked.append((deployment, options))
        return type("Run", (), {"id": "r1"})

    monkeypatch.setattr(hook, "arun_deployment", run)  # what Prefect makes of it is in tests/servers
    monkeypatch.setattr(hook.time, "time", lambda: NOW)
    client = TestClient(door(SECRET, "review/review", parameters={"approve": "champion"}))
    headers = {"X-MLflow-Signature": signature(BODY), "X-MLflow-Timestamp": str(NOW), "X-MLflow-Delivery-Id": "d1"}
    assert client.post("/mlflow", content=BODY).status_code == 401 and not asked
    answer = client.post("/mlflow", content=BODY, headers=headers)
    assert answer.status_code == 202 and answer.json() == {"review": "vendor/3", "flow_run": "r1"}
    assert asked == [
        (
            "review/review",
            {"parameters": {"approve": "champion", "model": "vendor/3"}, "timeout": 0, "idempotency_key": "hook-d1", "as_subflow": False},
        )
    ]
    assert client.post("/mlflow", content=b"x" * (hook.MOST + 1), headers=headers).status_code == 413
    assert client.get("/health").json() == {"status": "ok"} and client.get("/docs").status_code == 404
