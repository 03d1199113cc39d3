"""The entry in the host's list of face restorers (Settings, "Restore faces", /sdapi/v1/face-restorers)."""
from __future__ import annotations

from typing import TYPE_CHECKING

from . import files, host, job, settings

if TYPE_CHECKING:
    import numpy as np

    from .models import Models
    from .processing import Jobs


class FaceRestorer:
    """Answers as modules.face_restoration.FaceRestoration does."""

    def __init__(self, models: Models, jobs: Jobs):
        self._models, self._jobs = models, jobs

    def name(self) -> str:
        """What the settings store."""
        return job.NAME

    @property
    def cmd_dir(self) -> str:
        """The folder that the API names beside the restorer."""
        return str(files.folders("restorer")[0])

    def restore(self, np_image: np.ndarray, w: float | None = None) -> np.ndarray:
        """uint8 RGB [H,W,3] -> the same, restored as the settings say; ``w`` overrides the fidelity.

        Inside a job of the host, scores go into its infotext; a picture that cannot be restored comes back as it was,
        with the reason in the job's comments and infotext, unless the settings say to stop. Elsewhere, where nobody
        would see the reason, the error is raised.
        """
        from . import pictures
        from .core import IDCodeFormerError

        running = self._jobs.running()
        try:
            outcome = job.run(
                self._models, settings.choice(), pictures.to_tensor(np_image), settings.wishes(w), settings.photos()
            )
        except job.Interrupted:
            self._jobs.tell(running, {job.NAME: "interrupted"})
            return np_image
        except IDCodeFormerError as error:
            host.say(job.not_restored(error))
            if running is None or settings.stops_on_error():
                raise
            self._jobs.tell(running, {job.NAME: job.not_restored(error)}, comment=True)
            return np_image
        self._jobs.tell(running, {**outcome.infotext(), settings.HOST_WEIGHT: "False"})
        return pictures.to_array(outcome.image)


def register(restorer: FaceRestorer) -> None:
    """Put it into the host's list, in the place of an earlier one of the same name (Reload UI)."""
    unregister()
    listed = host.face_restorers()
    if listed is not None:
        listed.append(restorer)


def unregister() -> None:
    """Take every entry of our name out of the host's list."""
    listed = host.face_restorers()
    if listed is not None:
        listed[:] = [other for other in listed if other.name() != job.NAME]
