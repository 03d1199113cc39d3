"""Options, arguments, state and, but for SD.Next, the list of face restorers."""
import importlib.util
from types import SimpleNamespace


class OptionInfo:
    def __init__(self, default=None, label="", component=None, component_args=None, section=None, refresh=None,
                 infotext=None, restrict_api=False):
        self.default, self.label, self.component, self.component_args = default, label, component, component_args
        self.section, self.refresh, self.infotext, self.restrict_api = section, refresh, infotext, restrict_api
        self.comment_after = ""

    def info(self, text):
        self.comment_after += text
        return self


class Options:
    def __init__(self):
        self.data, self.data_labels = {}, {}

    def __getattr__(self, name):
        if name in self.data:
            return self.data[name]
        if name in self.data_labels:
            return self.data_labels[name].default
        raise AttributeError(name)

    def add_option(self, name, info):
        self.data_labels[name] = info


class State:
    interrupted = skipped = False
    textinfo = None
    jobs: list = []

    def begin(self, job):
        self.jobs.append(job)

    def end(self):
        self.jobs.append("end")


opts = Options()
cmd_opts = SimpleNamespace(api=True, codeformer_models_path=None, gfpgan_models_path=None)
state = State()
if importlib.util.find_spec("modules.scripts_manager") is None:
    face_restorers = [SimpleNamespace(name=lambda: "CodeFormer"), SimpleNamespace(name=lambda: "GFPGAN")]
    opts.data |= {"code_former_weight": 0.5, "face_restoration_unload": False}
else:
    State.begin = lambda self, job: self.jobs.append(job) or 7
    State.end = lambda self, number: self.jobs.append(number)
