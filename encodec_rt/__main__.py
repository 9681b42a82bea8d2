"""``python -m encodec_rt`` is ``encodec-rt``."""

import signal


def main() -> None:
    """Run the command line. While its modules load, Ctrl-C ends the process without a word."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from encodec_rt.cli import main as run

    run()


if __name__ == "__main__":
    main()
