"""Whether the Hugging Face Hub answers, asked before its own client retries for 23 s and more. Imports no torch."""

from __future__ import annotations

import urllib.error
import urllib.request

_TIMEOUT_S = 10.0


def find_hub_problem() -> str | None:
    """Return why the Hub cannot be asked for weights, None when it answers."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set"
    try:
        request = urllib.request.Request(constants.ENDPOINT, method="HEAD")
        urllib.request.urlopen(request, timeout=_TIMEOUT_S).close()
    except urllib.error.HTTPError:
        return None  # it answered
    except Exception as problem:  # noqa: BLE001 - no route, no name, a proxy's no, a malformed address: all the same
        return f"{constants.ENDPOINT} does not answer: {getattr(problem, 'reason', problem)}"
    return None
