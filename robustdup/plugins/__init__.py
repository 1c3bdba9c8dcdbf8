"""The door: everything that can be plugged in, ours and yours alike, is registered here.

`specs` says what is known of each thing, `options` checks what users pass to it, `registry` holds it by name, `loading` finds
plugins. A plugin is a function `register(registry)` behind an entry point of the group `robustdup.plugins`, or in a file.
"""

from __future__ import annotations

from robustdup.plugins.loading import load_plugins, record_kinds
from robustdup.plugins.options import attack_signature
from robustdup.plugins.registry import Registry
from robustdup.plugins.specs import (
    Architecture,
    AttackFunction,
    AttackSpec,
    Batching,
    CommandSpec,
    Ensemble,
    FigureSpec,
    FinderSpec,
    Kind,
    Knowledge,
    Named,
    ObjectiveSpec,
    PluginStatus,
    RecordKind,
    Source,
    Stage,
    ThreatSpec,
    register_attack,
)

__all__ = [
    "Architecture",
    "AttackFunction",
    "AttackSpec",
    "Batching",
    "CommandSpec",
    "Ensemble",
    "FigureSpec",
    "FinderSpec",
    "Kind",
    "Knowledge",
    "Named",
    "ObjectiveSpec",
    "PluginStatus",
    "RecordKind",
    "Registry",
    "Source",
    "Stage",
    "ThreatSpec",
    "attack_signature",
    "load_plugins",
    "record_kinds",
    "register_attack",
]
