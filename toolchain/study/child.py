"""One stage as a process: `python -m toolchain.study.child PARENT COMMAND...` is `toolchain COMMAND...`.

It ends with the study that started it, so that no stage goes on writing when another run of the study begins.
"""

import sys

if __name__ == "__main__":
    from devices.process import end_with
    from toolchain.cli import main

    end_with(int(sys.argv.pop(1)))
    main()
