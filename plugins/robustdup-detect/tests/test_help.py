"""The options of `robustdup data detect` stand in panels."""

from robustdup_detect.options import DetectConfig

from robustdup.cli.main import main


def test_help_of_the_command_shows_every_panel(capsys):
    assert sorted(name for names in DetectConfig.panels.values() for name in names) == sorted(DetectConfig.model_fields)
    assert main(["data", "detect", "-h"]) == 0
    text = capsys.readouterr().out
    assert all(f"\n{panel}:\n" in text for panel in DetectConfig.panels)
