"""VideoFromFile as Load Video makes it and Save Video takes it."""
import io
import shutil


class VideoFromFile:
    def __init__(self, file, *, start_time: float = 0, duration: float = 0):
        self.file, self.window = file, (start_time, duration)

    def get_stream_source(self):
        if not isinstance(self.file, str):
            self.file.seek(0)
        return self.file

    def get_active_trim_window(self) -> tuple[float, float]:
        return self.window

    def save_to(self, path, **_) -> None:
        if isinstance(self.file, io.BytesIO):
            with open(path, "wb") as out:
                out.write(self.file.getvalue())
        else:
            shutil.copyfile(self.file, path)
