"""One HTTP exchange whose socket is closed whatever the answer."""

import urllib.error
import urllib.request


def fetched(request: urllib.request.Request | str, timeout_s: float = 30.0) -> tuple[int, bytes]:
    """Return status and body; status 0 when nobody answers."""
    try:
        with urllib.request.urlopen(request, timeout=timeout_s) as answer:
            return int(answer.status), answer.read()
    except urllib.error.HTTPError as refused:
        with refused:
            return refused.code, refused.read()
    except OSError:
        return 0, b""
