"""Odd values of options, each to be refused by one message: made here, driven by test_mistakes.py."""

from __future__ import annotations

BIG = "9" * 400
TURNED, CONTROL = "a\u202eb", "\x1b[2J[/bold]"  # text that runs the other way, and that clears a screen
DUPLICATE = ("data", "duplicate", "builtin:digits", "--to", "dup")
DOSED = (*DUPLICATE, "--scheme", "uniform", "--dose", "0.3")
CERTIFY = ("certify", "--model", "builtin:digits-certified", "--n", "2", "--eps", "0.02")
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

OF_DUPLICATION = [
    (*DUPLICATE, "--scheme", scheme, *dose, flag, value)
    for scheme, dose, flag, values in (
        ("uniform", (), "--dose", ("nan", "1e400", "-1", "1", "true", BIG)),
        ("uniform", (), "--fraction", ("nan", "2", "-1", "1e400", "true")),
        ("uniform", ("--dose", "0.3"), "--copies", ("0", "-1", BIG, "1.5", "true", "nan")),
        ("class_skewed", ("--dose", "0.3"), "--skew", ("nan", "2", "-1", "1e400")),
        ("class_skewed", ("--dose", "0.3"), "--classes", ("nope", TURNED, "99", "-1", BIG)),
        ("power_law", ("--dose", "0.3"), "--exponent", ("nan", "-1", "1e400", BIG)),
        ("single", ("--dose", "0.1"), "--row", ("-1", BIG, "1e400", "true", "99999")),
        ("hardest", ("--dose", "0.3"), "--score-column", ("nope", CONTROL)),
        ("leak", ("--dose", "0.01"), "--leak-from", ("nope", CONTROL)),
        ("whole_set", (), "--paper-p", ("-1", BIG, "nan")),
        ("uniform", (), "--paper-r", ("nan", "2", "-1", "1e400")),
        ("uniform", ("--dose", "0.3"), "--seed", ("-1", BIG, "nan", "true")),
        ("uniform", ("--dose", "0.3"), "--split", ("nope", TURNED, CONTROL)),
    )
    for value in values
]
OF_DUPLICATION += [
    (*DOSED, "--near", change)
    for change in (
        "shift(pixels=-1)", "shift(pixels=1e400)", f"shift(pixels={BIG})", "crop_resize(keep=0)", "crop_resize(keep=2)",
        "crop_resize(keep=nan)", "jpeg(quality=0)", "jpeg(quality=101)", "jpeg(quality=1e400)", "noise(std=nan)",
        "noise(std=-1)", "noise(std=1e400)", "blur(sigma=0)", "blur(sigma=1e400)", "blur(sigma=nan)",
        "brightness(strength=nan)", "brightness(strength=-1)", "contrast(strength=1e400)", "nope", "shift(pixels=true)",
    )
]  # fmt: skip
OF_CERTIFICATION = [
    (*CERTIFY, flag, value)
    for flag, values in {
        "--smoothing": ("nan", "-1", "true", BIG),
        "--seconds": ("nan", "-1", "true"),
        "--branch": ("nan", "-1", "true"),
        "--norm": ("L0", "L3"),
        "--eps": ("0", "-0", "nan", "1e400", BIG, "০.১"),
        "--threads": ("0", "-1", BIG, "true"),
    }.items()
    for value in values
]
OF_CERTIFICATION += [
    (*CERTIFY, "--norm", "L2", "--smoothing", "0.1", "--draws", n) for n in ("0", "-1", BIG, "nan", "1.5", "true")
]

# Of a finished run RUN and its bundle BUNDLE; PIPE, LOOP (a link to itself), FILE and FOLDER are what they say.
OF_RUNS = [
    *(("gate", "RUN", "--min", v) for v in ("nan", "1e400", "-1", "101%", "2", BIG, "true", "45%%", "1/0", TURNED, "9" * 5000)),
    *(("gate", "RUN", "--baseline", "RUN", "--margin", v) for v in ("nan", "1e400", "-1pt", BIG, "101%", "true", "pt", "%")),
    *(("gate", "RUN", "--min", "0", flag, v) for flag in ("--junit", "--sarif")
      for v in ("FOLDER", "PIPE", "/dev/null", "/proc/x", "a\0b", "FILE/x", "x" * 300)),
    *(("gate", "RUN", "--min", "0", "--summary", v) for v in ("FOLDER", "PIPE", "/proc/x", "a\0b", "FILE/x")),
    *(("gate", "RUN", "--baseline", v) for v in ("nope", "FILE", "PIPE", "FOLDER")),
    *(("report", "RUN", "--gallery", v) for v in ("-1", "nan", "true", "1.5", "1e400")),
    *(("report", "RUN", "--to", v) for v in ("FILE", "PIPE", "/dev/null", "/proc/x", "a\0b", "x" * 300, "FILE/x")),
    *(("report", "RUN", "--card", "--to", v) for v in ("FOLDER", "/dev/null", "a\0b")),
    *(("plot", "RUN", "--to", v) for v in ("", "figure", "figure.exe", "FOLDER", "/proc/x.pdf", "FILE/x.png", ".png")),
    *(("plot", "RUN", "--to", "f.png", "--width", v) for v in ("0", "nan", "three", "-1", BIG, "")),
    *(("plot", "RUN", "--to", "f.png", "--kind", v) for v in ("nope", "training", "dose", "effects", TURNED)),
    *(("compare", "RUN", v) for v in ("FOLDER", "FILE", "", TURNED)),
    *(("leaderboard", "rank", v) for v in ("FOLDER", "", CONTROL, TURNED, "FILE")),
    *(("leaderboard", "rank", "RUN", "--clean", v) for v in ("nan", "101", "-1", BIG, "nope", "1e400")),
    *(("verify", "BUNDLE", "--replay", v) for v in ("nan", "0", "-0", "-1", "1.1", "1e400", BIG, "true", "1e-400")),
    *(("verify", "BUNDLE", "--signer", v) for v in ("FOLDER", "PIPE", TURNED, "/dev/zero", "FILE")),
    *(("verify", "BUNDLE", "--sign", v) for v in ("FOLDER", "PIPE", "/dev/zero", "FILE", "/dev/null")),
    *(("verify", "BUNDLE", *words) for words in (
        ("--scale", "255"), ("--indices", "0"), ("--judge-draws", "0"), ("--seed", "-1"), ("--micro-batch", "0"),
        ("--threads", "0"), ("--device", "tpu"), ("--data", "nope"), ("--n", "3"), ("--model", "builtin:digits-standard"))),
    *(("verify", "BUNDLE/adversarial.safetensors", "--eps", "0.1", "--n", "4", "--scale", v)
      for v in ("nan", "0", "-1", "1e400", "1e999999999", BIG, "nope", "0.5", "0.5,0", "৪,1", TURNED)),
    *(("verify", "BUNDLE/adversarial.safetensors", "--eps", "0.1", "--n", "4", "--indices", v)
      for v in ("nope", "0,0", "-1", "0,1,2", BIG, "1.5", "nan", "1e400", "PIPE", "FOLDER", "/dev/zero", "FILE", "true")),
]  # fmt: skip

WORDS = [(*TRAIN, flag, value) for flag, values in OF_TRAINING.items() for value in values]
WORDS += [*OF_DUPLICATION, *OF_CERTIFICATION]
