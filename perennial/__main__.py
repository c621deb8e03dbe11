"""``perennial``: the steps and commands of ``python -m pipelines``, and those of the stack."""

from __future__ import annotations

import sys

NAME = "perennial"
STACK = ("up", "down", "status")
ALSO = f"The stack has commands of its own: {', '.join(STACK)}, doctor, tune and demo, each with --help."


def main() -> int:
    """Run one command; its exit code."""
    asked = sys.argv[1:]
    if asked[:1] == ["demo"]:
        from embedded.demo.__main__ import main as demo

        return demo(asked[1:], prog=f"{NAME} demo")
    if asked[:1] == ["doctor"]:
        from embedded.doctor import main as doctor

        return doctor(asked[1:], prog=f"{NAME} doctor")
    if asked[:1] == ["tune"]:
        from embedded.tune.__main__ import main as tune

        return tune(asked[1:], prog=f"{NAME} tune")
    if asked and asked[0] in STACK:
        from embedded.__main__ import main as stack

        return stack(asked, prog=NAME)
    from pipelines.cli import main as line

    return line(asked, prog=NAME, also=ALSO)


if __name__ == "__main__":
    sys.exit(main())
