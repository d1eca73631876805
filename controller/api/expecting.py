"""Which resource version a caller expects to change: from the body, or from the header `If-Match`."""

from typing import Annotated

from fastapi import Header

from core.errors import Failure

IfMatch = Annotated[str | None, Header(alias="If-Match")]


def expected(if_match: str | None, in_body: int | None) -> int | None:
    """Return the version that a caller expects, None for any; `*`, bare and quoted numbers are taken as headers.

    Raises:
        Failure: `request.invalid_field` when the header is no number, or disagrees with the body.
    """
    if if_match is None or if_match.strip() == "*":
        return in_body
    text = if_match.strip().removeprefix("W/").strip('"')
    if not text.isascii() or not text.isdigit() or len(text) > 18:
        raise Failure(
            "request.invalid_field",
            "the header If-Match names no resource version",
            hint='send the number that the thing was shown with, e.g. If-Match: "7"',
            param="If-Match",
        )
    if in_body is not None and in_body != int(text):
        raise Failure(
            "request.invalid_field",
            f"If-Match says {text}, the body's resource_version {in_body}",
            hint="send one of them",
            param="If-Match",
        )
    return int(text)
