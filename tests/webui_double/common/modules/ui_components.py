"""The accordion that is a check box."""
import gradio


class InputAccordion(gradio.Checkbox): ...
