from __future__ import annotations
from dataclasses import dataclass
from fastapi import APIRouter, Request, Response
from kleinbild.gateway.services import services_of

router = APIRouter()


@dataclass
class Media:
    secret: bytes
    seconds: float

    def url(self, sha256, output_format, base):
        return f"{base}/v1/media/{sha256}.{output_format}"


@router.get("/v1/media/{name}")
async def media(request: Request, name: str) -> Response:
    return Response(await services_of(request).blobs.get(name.split(".")[0]), media_type="image/png")
