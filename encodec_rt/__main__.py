"""``python -m encodec_rt`` is ``encodec-rt``."""

from encodec_rt.cli import main

if __name__ == "__main__":
    main()
