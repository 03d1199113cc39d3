"""Components that remember how they were made."""


class Component:
    def __init__(self, *args, **settings):
        self.args, self.settings, self.clicked = args, settings, None

    def __enter__(self):
        return self

    def __exit__(self, *error):
        return None

    def click(self, fn, inputs, outputs):
        self.clicked = (fn, inputs, outputs)


class Checkbox(Component): ...


class Slider(Component): ...


class Dropdown(Component): ...


class Radio(Component): ...


class Textbox(Component): ...


class Button(Component): ...


class Image(Component):
    def __init__(self, value=None, *, type="numpy", label=None, elem_id=None):  # what gradio 3 and 4 share
        super().__init__(value, type=type, label=label, elem_id=elem_id)


class Row(Component): ...


class Group(Component): ...
