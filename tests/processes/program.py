"""The zoo as a script, which torchrun starts."""

from zoo.cli.main import run

if __name__ == "__main__":
    run()
