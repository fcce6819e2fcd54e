"""A door for MLflow's webhooks: when a version is registered, a review of it begins on whatever workers the deployment has.

What comes in is believed when it is signed with the secret that was given to MLflow, and then only as far as the name of a version: the review fetches it.
MLflow signs `ID.TIME.BODY` by HMAC-SHA256 (its `X-MLflow-Signature` is `v1,` and the base64 of that), as Standard Webhooks does.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import time
from typing import Annotated, Any

from fastapi import FastAPI, Header, HTTPException, Request
from prefect.deployments import arun_deployment

from pipeline.errors import BadInput
from pipeline.registry import Named

OLDEST = 300.0  # seconds that a message may have been on its way
MOST = 2**20  # bytes of a message
CREATED = ("model_version", "created")


def door(secret: str, deployment: str, *, parameters: dict[str, Any] | None = None) -> FastAPI:
    """The application: POST /mlflow takes MLflow's messages, GET /health says that it is there.

    deployment: of the flow `review`, as FLOW/NAME.  parameters: what each review is given beside the version; what it lacks the deployment has.
    """
    app = FastAPI(title="onnx-audit", docs_url=None, redoc_url=None, openapi_url=None)

    @app.get("/health")
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    @app.post("/mlflow", status_code=202)
    async def mlflow(
        request: Request,
        x_mlflow_signature: Annotated[str, Header()] = "",
        x_mlflow_timestamp: Annotated[str, Header()] = "",
        x_mlflow_delivery_id: Annotated[str, Header()] = "",
    ) -> dict[str, str | None]:
        body = await _body(request)
        if not signed(body, secret, signature=x_mlflow_signature, sent=x_mlflow_timestamp, delivery=x_mlflow_delivery_id, now=time.time()):
            raise HTTPException(401, "not signed with the secret of this hook, or too long ago")
        version = created(body)
        if version is None:
            return {"review": None}
        given = {**(parameters or {}), "model": version}
        run = await arun_deployment(deployment, parameters=given, timeout=0, idempotency_key=f"hook-{x_mlflow_delivery_id}", as_subflow=False)
        return {"review": version, "flow_run": str(run.id)}

    return app


async def _body(request: Request) -> bytes:
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > MOST:
            raise HTTPException(413, "too long")
    return body


def signed(body: bytes, secret: str, *, signature: str, sent: str, delivery: str, now: float) -> bool:
    """Whether a message is from somebody who knows the secret, and not one of long ago sent again.  sent, now: seconds since 1970."""
    if not (sent.isascii() and sent.isdigit() and len(sent) <= 12) or abs(now - int(sent)) > OLDEST:
        return False
    expected = hmac.new(secret.encode(), f"{delivery}.{sent}.".encode() + body, hashlib.sha256).digest()
    return hmac.compare_digest(signature.encode(), b"v1," + base64.b64encode(expected))


def created(body: bytes) -> str | None:
    """NAME/VERSION of the version that a message says was registered; None where it says something else."""
    try:
        message = json.loads(body)
        if (message["entity"], message["action"]) != CREATED:
            return None
        named = Named.of(f"{message['data']['name']}/{message['data']['version']}")
    except (ValueError, KeyError, TypeError, BadInput):
        return None
    return f"{named.name}/{named.version}"
