"""`python -m robustdup …`, and so `accelerate launch -m robustdup train …` and `torchrun -m robustdup train …`."""

from robustdup.cli.main import run

if __name__ == "__main__":
    run()
