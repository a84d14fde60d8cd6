"""What can go wrong, told to a person.

    RagError
    ├── UserError           the caller can mend it: an argument, a file, a setting (exit status 2)
    │   ├── DocumentError   one document cannot be read; the others are not touched
    │   └── QuestionTooLong     a question that no model's window here has room for
    ├── WeightsError        a model file could not be had, or is not the file it should be
    ├── BuildError          llama.cpp could not be compiled here (`models.native`)
    └── ModelError          a model did not answer
        ├── ModelUnreachable    nothing listens there, or it stopped listening
        ├── ModelTimeout        it listens and does not answer in time
        ├── ModelRefused        it answered with an error status, or an error inside a stream
        │   ├── ModelUnknown        it has no model of that name
        │   └── PromptTooLong       what it was sent does not fit its window
        ├── ModelBroke          the stream ended before the answer did
        └── ModelSilent         it answered, with nothing

Every message says what, which value, and what to do now. Each door shows a `RagError` in its own form (a line in the
terminal, a message in the chat, a JSON body); anything else is a bug and keeps its traceback.
"""


class RagError(Exception):
    """Something a person can be told in one or two sentences: `str(error)` is that text."""

    @property
    def told(self) -> str:
        """The same text, which may know other languages (`rag.words.Said`)."""
        return self.args[0] if self.args else type(self).__name__


class UserError(RagError):
    """The caller can mend it. The terminal exits with status 2."""


class DocumentError(UserError):
    """One document cannot be read; it costs only itself."""


class QuestionTooLong(UserError):
    """The question alone takes more of a model's window than may be left to it."""


class WeightsError(RagError):
    """A model file could not be fetched, or its bytes are not those its publisher signed."""


class ModelError(RagError):
    """A model did not answer. Seen by the cascade, which decides whether another model can."""


class ModelUnreachable(ModelError):
    """Nothing listens at the model's address, or it stopped listening."""


class ModelTimeout(ModelError):
    """The server listens and does not answer within the limit in settings."""


class ModelRefused(ModelError):
    """The server answered with an error, as a status or inside the stream."""

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


class ModelUnknown(ModelRefused):
    """The server has no model of that name."""


class PromptTooLong(ModelRefused):
    """Prompt and answer together do not fit the model's window."""


class ModelBroke(ModelError):
    """The stream ended before the answer did."""


class ModelSilent(ModelError):
    """The server finished normally and wrote nothing."""
