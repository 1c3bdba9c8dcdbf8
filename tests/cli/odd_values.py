"""Odd values of options, each to be refused by one message: made here, driven by test_mistakes.py."""

from __future__ import annotations

BIG = "9" * 400
TURNED, CONTROL = "a\u202eb", "\x1b[2J[/bold]"  # text that runs the other way, and that clears a screen
TRAIN = ("train", "--n", "8", "--epochs", "1", "--batch-size", "4", "--objective", "standard", "--out", "run")
OF_TRAINING = {
    "--epochs": ("1e400", "nan", "-0", "-1", BIG, "true", "[1]", "1e-400", "1e308"),
    "--steps": ("0", "-3", "1e3", "nan", BIG, "true", "1.5"),
    "--samples": ("0", "-1", BIG, "nan", "true"),
    "--batch-size": ("0", "-1", BIG, "true", "1e400"),
    "--lr": ("1e400", "nan", "-0", "-1", BIG, "true", "1e-400"),
    "--weight-decay": ("nan", "1e400", "-1", "true", BIG),
    "--momentum": ("nan", "1", "-0.1", "1e400", "true"),
    "--clip": ("nan", "-1", "1e400", "0", "true"),
    "--ema": ("nan", "1", "-0.1", "true"),
    "--swa": ("nan", "1.5", "-1", "1e400"),
    "--warmup": ("nan", "-1", "2", "1e400"),
    "--label-smoothing": ("nan", "1", "-1", "1e400", "true"),
    "--padding": ("-1", BIG, "1e400", "true"),
    "--extra-share": ("nan", "2", "-1"),
    "--muon-lr": ("nan", "-1", "1e400"),
    "--schedule-steps": ("0", "-1", BIG, "nan"),
    "--milestones": ("[nan]", "[2]", "x", "true"),
    "--eps": ("1e400", "nan", "-0", "0", BIG, "true", "-1/255", "1/0", "৪/255"),
    "--eps-schedule": ("0:nan", "x", "2:0.1", "0:0,0:1", "0:1e400", "0:1e999999999", "0:-1"),
    "--steps-schedule": ("0:nan", "0:1.5", "0:-1", "0:0", "x", "0:" + BIG),
    "--seed": ("-1", BIG, "nan", "true", "1.5"),
    "--resize": ("0", "-1", BIG, "true"),
    "--crop": ("0", "-1", BIG),
    "--sample": ("0", "-1", BIG, "99999"),
    "--freeze": ("nope", "[", "*", TURNED),
    "--init": ("nope", "run:", TURNED, "/dev/null"),
    "--mix": ("cutmix(alpha=nan)", "cutmix(alpha=-1)", "cutmix(alpha=0)", "mixup(alpha=1e400)", "nope"),
    "--transforms": (
        "randaugment(num_ops=-1)", "randaugment(num_ops=1e400)", "randaugment(magnitude=31)", "randaugment(magnitude=-1)",
        "resized-crop(scale=nan)", "resized-crop(scale=-1)", "resized-crop(scale=2)", "resized-crop(ratio=0)",
        "resized-crop(ratio=2)", "erasing(p=nan)", "erasing(p=2)", "color-jitter(x=1)", "color-jitter(hue=2)",
    ),
    "--normalize": ("nan,1", "0.5", "0.5,0", "x", "1e400,1", "1e999999999,1", "0.5,-1", "৪,1"),
    "--model": (
        "small-cnn(width=0)", "small-cnn(width=-1)", "small-cnn(width=1e400)", "small-cnn(width=true)",
        "small-cnn(width=nan)", "wide-resnet(depth=27,width=1)", "small-cnn(nope=1)", "small-resnet(width=0)",
        "preact-resnet18(width=-3)", f"small-cnn(width={BIG})", f"small-cnn(width={2**61})",
    ),
    "--objective": (
        "trades(beta=1e400)", "trades(beta=true)", "trades(beta=[1])", "free(replays=0)", "free(replays=1.5)",
        f"free(replays={BIG})", "mart(beta=nan)", "trades(beta='6')",
    ),
    "--update": ("awp(gamma=nan)", "awp(gamma=-1)", "awp(gamma=1e400)", "nope"),
    "--attack": (f"pgd(steps={BIG})", "pgd(step_size=1e400)"),
}  # fmt: skip

WORDS = [(*TRAIN, flag, value) for flag, values in OF_TRAINING.items() for value in values]
