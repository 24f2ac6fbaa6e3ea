"""Where the raw text stands of what is told in a sentence."""

import tempfile


def keep_report(raw: str) -> str:
    """Write it to a file and say to which."""
    with tempfile.NamedTemporaryFile(
        "w", prefix="hetkern-report-", suffix=".txt", delete=False
    ) as file:
        file.write(raw)
    return f"the whole report: {file.name}"
