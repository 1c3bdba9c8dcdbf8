"""The union over norms: a sample is robust when it survives in every ball of several (https://arxiv.org/abs/1904.13000)."""

from __future__ import annotations

import re
from collections.abc import Sequence

from robustdup.errors import UserError
from robustdup.threat import ThreatModel

EXAMPLE = "'Linf 8/255 + L2 0.5 + L1 12'"
_PART = re.compile(r"([A-Za-z][\w-]*)\s*[\s,:]\s*(?:eps\s*=\s*)?(\S.*)")


def parse_balls(text: str) -> list[ThreatModel]:
    """Return the balls that 'Linf 8/255 + L2 0.5' names, in this order: one, or a union. Raises UserError.

    Each has its norm and eps; no norm may stand twice, since the smaller ball lies in the larger one.
    """
    balls: list[ThreatModel] = []
    for part in re.split(r"\+(?![\d.])", text):
        match = _PART.fullmatch(part.strip())
        if match is None:
            raise UserError(
                f"Cannot read {part.strip()!r} in the threat model {text!r}: each part is a norm with its eps. Write for "
                f"instance {EXAMPLE}.",
                code="bad-threat",
            )
        if "," in match[2]:
            raise UserError(
                f"A union has one eps a norm, got {match[2]!r}. For a curve over eps write --norm {match[1]} --eps {match[2]}.",
                code="bad-threat",
            )
        ball = ThreatModel(match[1], match[2])
        if ball.norm in [other.norm for other in balls]:
            raise UserError(
                f"{ball.norm} stands twice in {text!r}: the smaller ball lies in the larger. Name each norm once, or a curve "
                f"with --norm {ball.norm} --eps …,….",
                code="bad-threat",
            )
        balls.append(ball)
    return balls


def ball_name(ball: ThreatModel) -> str:
    """Return how a ball of a union is called in records and tables: 'L2 0.5'."""
    return f"{ball.norm} {ball.eps_text}"


def union_name(balls: Sequence[ThreatModel]) -> str:
    """Return how a union is called: 'Linf 8/255 + L2 0.5'."""
    return " + ".join(map(ball_name, balls))


def is_union(balls: Sequence[ThreatModel]) -> bool:
    """Tell a union over norms from several eps of one norm."""
    return len({ball.norm for ball in balls}) > 1
