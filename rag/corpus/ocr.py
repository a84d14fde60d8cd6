"""Text from pictures, by the Tesseract that is installed on this machine, if one is.

Knows how to call it; knows nothing of files and documents. It is a program of its own, so a picture that crashes it
costs nothing here.
"""

import shutil
import subprocess
from dataclasses import dataclass

# Every language makes a page slower; who has installed more wanted a choice, which a scan cannot make.
MOST_LANGUAGES = 6
NOT_LANGUAGES = {"osd", "equ", "snum"}


@dataclass(frozen=True)
class Tesseract:
    program: str
    languages: str
    """As its option -l takes them: "eng+deu"."""

    @classmethod
    def found(cls) -> "Tesseract | None":
        """The one on the PATH; None where there is none, or none that works."""
        program = shutil.which("tesseract")
        if program is None:
            return None
        try:
            answer = subprocess.run([program, "--list-langs"], capture_output=True, text=True, timeout=10)
        except (OSError, subprocess.TimeoutExpired):
            return None
        # The first line is a sentence about the folder.
        installed = [name for line in answer.stdout.splitlines()[1:] if (name := line.strip()) not in NOT_LANGUAGES]
        names = sorted((name for name in installed if name and "/" not in name), key=lambda name: (name != "eng", name))
        return cls(program, "+".join(names[:MOST_LANGUAGES])) if names else None

    def read(self, picture: bytes, timeout_s: float, dpi: int | None = None) -> str:
        """The text on a picture in any format that Tesseract takes; "" where it finds none, fails, or takes longer."""
        density = ["--dpi", str(dpi)] if dpi else []
        try:
            answer = subprocess.run(
                [self.program, "stdin", "stdout", "-l", self.languages, *density],
                input=picture,
                capture_output=True,
                timeout=timeout_s,
            )
        except (OSError, subprocess.TimeoutExpired):
            return ""
        return answer.stdout.decode("utf-8", "replace") if answer.returncode == 0 else ""
