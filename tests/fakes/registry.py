"""An Ollama registry: manifests and blobs of Docker's protocol, v2, with Ollama's media types."""

import contextlib
import hashlib
import json
from collections.abc import Iterator

from tests.fakes import web
from tests.fakes.web import Site

MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"


class Registry:
    """Models on one site."""

    def __init__(self, site: Site) -> None:
        self.site = site

    @property
    def url(self) -> str:
        return self.site.url

    def push(self, name: str, tag: str, layers: list[tuple[str, bytes]], **more: object) -> dict[str, str]:
        """Put a model under `namespace/name`; return the digest of each kind of layer and of the manifest."""
        listed, digests = [], {}
        for kind, data in layers:
            digest = hashlib.sha256(data).hexdigest()
            digests[kind] = digest
            self.site.put(f"/v2/{name}/blobs/sha256:{digest}", data)
            listed.append(
                {
                    "mediaType": f"application/vnd.ollama.image.{kind}",
                    "digest": f"sha256:{digest}",
                    "size": len(data),
                    **({"from": "/models/blob"} if kind == "model" else {}),
                }
            )
        config = b'{"model_format": "gguf"}'
        body = {
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": {
                "mediaType": "application/vnd.docker.container.image.v1+json",
                "digest": f"sha256:{hashlib.sha256(config).hexdigest()}",
                "size": len(config),
            },
            "layers": listed,
            **more,
        }
        text = json.dumps(body).encode()
        digests["manifest"] = hashlib.sha256(text).hexdigest()
        self.site.put(f"/v2/{name}/manifests/{tag}", text, headers={"content-type": MANIFEST})
        # Where Ollama's own client looks for a manifest of a digest.
        self.site.put(f"/v2/{name}/blobs/sha256:{digests['manifest']}", text)
        return digests


@contextlib.contextmanager
def registry() -> Iterator[Registry]:
    """Serve an empty `Registry`."""
    with web.site() as site:
        yield Registry(site)
