"""Extras scripts and their pictures."""


class PostprocessedImage:
    def __init__(self, image):
        self.image, self.info = image, {}


class ScriptPostprocessing:
    name, order = None, 1000
