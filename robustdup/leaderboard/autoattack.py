"""Whether a record's attack is the one that the leaderboard uses: AutoAttack, standard version, in fp32.

The standard version is APGD-CE, targeted APGD-DLR and targeted FAB of 100 iterations, each with one restart and nine
targets, and Square of 5,000 queries (https://arxiv.org/abs/2003.01690).
"""

from __future__ import annotations

import re
from typing import Any

from robustdup.records import AttackResult, EvaluationRecord

NAMES = ("autoattack", "robustbench:AutoAttack")
_WHOLE = {"autoattack", "robustbenchautoattack"}
_PARTS = ({"apgdce"}, {"apgdt", "apgddlrt", "apgdtargeted"}, {"fabt", "fabtargeted"}, {"square"})

# What an option must be, under whichever name an attack gives it.
_STANDARD: dict[str, Any] = {
    "version": "standard", "niter": 100, "steps": 100, "iterations": 100, "nqueries": 5000, "queries": 5000,
    "ntargetclasses": 9, "ntargets": 9, "targets": 9, "nrestarts": 1, "restarts": 1, "eotiter": 1, "eot": 1,
    "rho": 0.75, "pinit": 0.8,
}  # fmt: skip

# In L1 the standard differs (https://arxiv.org/abs/2103.01208).
_STANDARD_L1: dict[str, dict[str, Any]] = {
    "apgdce": {"restarts": 5, "nrestarts": 5}, "apgdt": {"targets": 5, "ntargetclasses": 5},
}  # fmt: skip


def differences(record: EvaluationRecord) -> list[str]:
    """Return why a record's attack is not the leaderboard's AutoAttack; an empty list where it is."""
    asked = _asked(record)
    names = [attack.name for attack in record.attacks]
    listed = ", ".join(dict.fromkeys(names)) or "none"
    if len(asked) != 1 or asked[0].lower() not in {name.lower() for name in NAMES}:
        named = ", ".join(asked) or "none"
        return [f"the attack is not AutoAttack ({f'asked for: {named}; ran: {listed}' if named != listed else named})"]
    reasons = _missing_parts(names, listed)
    for attack in record.attacks:
        changed = _changed_options(attack, record.threat.norm)
        reasons += [f"AutoAttack with another setting: {text}" for text in changed]
    if record.config.get("loss") is not None:
        reasons.append(f"AutoAttack with another loss ({record.config['loss']})")
    if record.environment.attack_precision not in ("fp32", "tf32"):  # TF32: what torch gives its authors' code on a GPU
        reasons.append(f"AutoAttack runs in fp32; this one ran in {record.environment.attack_precision}")
    return list(dict.fromkeys(reasons))


def stronger_than_standard(record: EvaluationRecord) -> bool:
    """Say whether at least AutoAttack ran, perhaps more: the number is then no upper bound of AutoAttack's."""
    plain = {_plain(attack.name) for attack in record.attacks}
    whole = bool(plain & _WHOLE) or all(any(_tail(name) in part for name in plain) for part in _PARTS)
    return whole and not any(_reduced(attack) for attack in record.attacks)


def _asked(record: EvaluationRecord) -> list[str]:
    """Names that the configuration asks for, without their options: 'a(x=1,y=2),b' -> a, b."""
    text = record.config.get("attacks", "")
    text = ",".join(map(str, text)) if isinstance(text, list) else str(text)
    while text != (text := re.sub(r"\([^()]*\)", "", text)):
        pass
    return [part.strip() for part in text.split(",") if part.strip()]


def _missing_parts(names: list[str], listed: str) -> list[str]:
    plain = [_plain(name) for name in names]
    if plain and all(name in _WHOLE for name in plain):
        return []
    missing = [sorted(part)[0] for part in _PARTS if not any(_tail(name) in part for name in plain)]
    others = [name for name in plain if name not in _WHOLE and not any(_tail(name) in part for part in _PARTS)]
    if missing or not names:
        return [f"not every attack of AutoAttack ran (ran: {listed})"]
    return [f"attacks beyond the standard AutoAttack ran (ran: {listed})"] if others else []


def _reduced(attack: AttackResult) -> bool:
    """Whether an option of an attack of AutoAttack is below its standard."""
    options = {_plain(name): value for name, value in attack.options.items()}
    return any(
        isinstance(value, int | float) and name in _STANDARD and value < _STANDARD[name]
        for name, value in options.items()
    )


def _changed_options(attack: AttackResult, norm: str) -> list[str]:
    changed = []
    standard = _STANDARD | (_STANDARD_L1.get(_tail(_plain(attack.name)), {}) if norm == "L1" else {})
    for name, value in attack.options.items():
        plain = _plain(name)
        if value is None:
            continue
        if plain in {"attacks", "attackstorun"}:
            names = value if isinstance(value, list) else str(value).split(",")
            parts = {_plain(str(part)) for part in names if str(part).strip()}
            if parts and not all(parts & part for part in _PARTS):
                changed.append(f"{attack.name}({name}={value})")
        elif plain in standard and value != standard[plain]:
            changed.append(f"{attack.name}({name}={value}), the standard has {standard[plain]}")
    return changed


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


def _tail(plain: str) -> str:
    """Drop a source in front of the name of a part, such as native: or robustbench:."""
    return re.sub(r"^(native|robustbench|autoattack)(?=.)", "", plain)
