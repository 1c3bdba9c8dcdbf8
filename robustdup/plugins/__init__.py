"""The door: everything that can be plugged in, ours and yours alike, is registered here.

`specs` says what is known of each thing, `options` checks what users pass to it, `registry` holds it by name, `loading` finds
plugins. A plugin is a function `register(registry)` behind an entry point of the group `robustdup.plugins`, or in a file.
"""

from __future__ import annotations

from robustdup.plugins.loading import load_plugins as load_plugins
from robustdup.plugins.loading import record_kinds as record_kinds
from robustdup.plugins.options import attack_signature as attack_signature
from robustdup.plugins.registry import Registry as Registry
from robustdup.plugins.specs import Architecture as Architecture
from robustdup.plugins.specs import AttackFunction as AttackFunction
from robustdup.plugins.specs import AttackSpec as AttackSpec
from robustdup.plugins.specs import Batching as Batching
from robustdup.plugins.specs import CommandSpec as CommandSpec
from robustdup.plugins.specs import Ensemble as Ensemble
from robustdup.plugins.specs import FigureSpec as FigureSpec
from robustdup.plugins.specs import FinderSpec as FinderSpec
from robustdup.plugins.specs import Kind as Kind
from robustdup.plugins.specs import Knowledge as Knowledge
from robustdup.plugins.specs import Named as Named
from robustdup.plugins.specs import ObjectiveSpec as ObjectiveSpec
from robustdup.plugins.specs import PluginStatus as PluginStatus
from robustdup.plugins.specs import RecordKind as RecordKind
from robustdup.plugins.specs import Source as Source
from robustdup.plugins.specs import Stage as Stage
from robustdup.plugins.specs import ThreatSpec as ThreatSpec
from robustdup.plugins.specs import register_attack as register_attack
