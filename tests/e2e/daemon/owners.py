# Every call of every service that names something, as one owner with what is another's: it is answered as with
# what is not there. The calls come from the documents, so that none can be forgotten.
import importlib, os, sys

import grpc
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message_factory import GetMessageClass
from grpc_tools import protoc

out = os.environ["OUT"]
assert protoc.main(["protoc", "-I", os.environ["PROTO"], "--python_out", out, "ringfence.proto"]) == 0
sys.path.insert(0, out)
pb = importlib.import_module("ringfence_pb2")

NOT_FOUND = grpc.StatusCode.NOT_FOUND
OK = grpc.StatusCode.OK

# Fields that name something that somebody owns.
IDS = ["sandbox", "codebase", "exec", "session", "snapshot", "sandbox_id", "session_id", "codebase_id"]
# What else is said, so that nothing but the name is wrong.
SAID = {
    "path": "mine", "paths": ["mine"], "from": "mine", "to": "yours", "argv": ["true"], "command": "true",
    "file_path": "mine", "seconds": 1,
}
# May be left out.
UNSAID = {
    "shell", "cwd", "stdin", "idempotency_key", "name", "workspace", "profiles", "policy_json", "content",
    "kind", "owner", "image", "workdir", "page_token", "data", "directory", "exclude", "owner_id", "file_name", "runtime",
}


def is_repeated(field):
    return field.is_repeated if hasattr(field, "is_repeated") else field.label == field.LABEL_REPEATED


def fill(message, values, used):
    for field in message.DESCRIPTOR.fields:
        text = field.type in (FieldDescriptor.TYPE_STRING, FieldDescriptor.TYPE_BYTES)
        if field.name in IDS:
            if field.name in values:
                setattr(message, field.name, values[field.name])
                used.add(field.name)
        elif field.name == "layer" and message.DESCRIPTOR.name == "ForkLayer":
            message.layer = "fork-of-another"
        elif field.name in SAID:
            # A line of text or its words; where there are both, the words.
            said = SAID[field.name]
            if is_repeated(field):
                getattr(message, field.name).extend(said)
            elif field.name != "command" or "argv" not in message.DESCRIPTOR.fields_by_name:
                setattr(message, field.name, said)
        elif field.name in ("start", "metadata") and field.message_type is not None:
            fill(getattr(message, field.name), values, used)
        elif text:
            assert field.name in UNSAID | {"layer"}, f"say what belongs into {field.full_name}"
    return message


class Caller:
    def __init__(self, channel, token=None):
        self.channel = channel
        self.metadata = [("authorization", "Bearer " + token)] if token else []

    def call(self, service, method, request):
        """Its code, what it says, and how many answers came."""
        kinds = {(False, False): "unary_unary", (False, True): "unary_stream",
                 (True, False): "stream_unary", (True, True): "stream_stream"}
        kind = kinds[method.client_streaming, method.server_streaming]
        path = f"/{service.full_name}/{method.name}"
        call = getattr(self.channel, kind)(
            path, lambda m: m.SerializeToString(), GetMessageClass(method.output_type).FromString)
        request = iter([request]) if method.client_streaming else request
        # What happens is followed without end: as long as this nothing may come.
        follows = (service.name, method.name) == ("Events", "Follow")
        answers = []
        try:
            got = call(request, metadata=self.metadata, timeout=2 if follows else 60)
            answers = [got] if not method.server_streaming else answers
            if method.server_streaming:
                for answer in got:
                    answers.append(answer)
        except grpc.RpcError as e:
            return e.code(), e.details(), answers
        return OK, "", answers

    def do(self, what, **fields):
        service, method = what.split(".")
        service = pb.DESCRIPTOR.services_by_name[service]
        method = service.methods_by_name[method]
        code, said, answers = self.call(service, method, GetMessageClass(method.input_type)(**fields))
        assert code == OK, (what, code, said)
        return answers[0] if answers else None


def methods(documents):
    for document in documents:
        for service in document.DESCRIPTOR.services_by_name.values():
            for method in service.methods:
                yield service, method


def walk(documents, caller, theirs, absent, only=None):
    """How many calls; each must be answered alike."""
    walked = set()
    for service, method in methods(documents):
        results = []
        for values in (theirs, absent):
            values = dict(values)
            # Of calls that can be about either, each service means one.
            if service.name in ("Files", "Layers"):
                values.pop("codebase", None)
            if service.name == "Codebases":
                values.pop("sandbox", None)
            used = set()
            request = fill(GetMessageClass(method.input_type)(), values, used)
            if not used or (only and not used & only):
                break
            code, said, answers = caller.call(service, method, request)
            for name in used:
                said = said.replace(values[name], "ID")
            results.append((code, said, [a.SerializeToString() for a in answers]))
        else:
            what = f"{service.name}.{method.name}"
            assert results[0] == results[1], (what, results)
            code, _, answers = results[0]
            if code == OK:
                # Gone is gone, whosever it was; and a list has nothing in it.
                assert method.name.startswith(("Delete", "Destroy", "List")) or what == "Events.Audit", (what, results)
                assert answers in ([], [b""]), (what, results)
            elif what == "Events.Follow":
                assert (code, answers) == (grpc.StatusCode.DEADLINE_EXCEEDED, []), results
            else:
                assert code == NOT_FOUND, (what, results)
            walked.add(what)
    return walked


def things(owner, name):
    codebase = owner.do("Codebases.Create", name=name)
    service = pb.DESCRIPTOR.services_by_name["Codebases"]
    part = pb.FilePart(codebase=name, path="mine", data=b"secret")
    assert owner.call(service, service.methods_by_name["WriteFile"], part)[0] == OK
    sandbox = owner.do("Sandboxes.Create", name=name, codebase=name, labels={"of": name})
    box = sandbox.id
    started = owner.do("Execs.Start", sandbox=box, argv=["sleep", "1000"])
    session = owner.do("Sessions.Create", sandbox=box)
    return {"sandbox": box, "codebase": codebase.id, "exec": started.id, "session": session.id, "snapshot": "one"}


options = [("grpc.default_authority", "localhost")]
with grpc.insecure_channel("unix:" + os.environ["SOCKET"], options=options) as channel:
    web, ci = Caller(channel, os.environ["WEB"]), Caller(channel, os.environ["CI"])
    user = Caller(channel)
    of_web, of_ci = things(web, "web"), things(ci, "ci")
    absent = {name: id[:3] + "0" * (len(id) - 3) for name, id in of_web.items() if name != "snapshot"}
    absent["snapshot"] = "one"
    walked = set()
    for caller in (ci, user):
        walked |= walk([pb], caller, of_web, absent)
        named = lambda name, ids: {**ids, "sandbox": name, "codebase": name}
        walk([pb], caller, named("web", of_web), named("zzz", absent))
    # What is in a sandbox of another's is not in one's own either.
    inner = lambda ids: {**ids, "sandbox": of_ci["sandbox"]}
    mixed = walk([pb], ci, inner(of_web), inner(absent), {"exec", "session"})
    assert {"Execs.Get", "Execs.Kill", "Execs.Follow", "Sessions.Run", "Sessions.Get"} <= mixed, mixed
    # All that names something was called.
    names = lambda m: any(f.name in IDS for f in m.input_type.fields) or m.input_type.name == "ToExec"
    every = {f"{s.name}.{m.name}" for s, m in methods([pb]) if names(m)}
    assert walked == every and len(every) > 45, (every - walked, len(every))

    # Other interfaces know no owners: nothing of one is there, whatever token is shown.
    sys.path.insert(0, os.environ["PYTHONPATH"])
    from agentfense._gen import codebase_pb2, sandbox_pb2
    theirs = {"sandbox_id": of_web["sandbox"], "session_id": of_web["session"], "codebase_id": of_web["codebase"]}
    nothing = {"sandbox_id": absent["sandbox"], "session_id": absent["session"], "codebase_id": absent["codebase"]}
    with grpc.insecure_channel("localhost:" + os.environ["FENCE"]) as fence:
        for token in (None, os.environ["WEB"]):
            walked = walk([sandbox_pb2, codebase_pb2], Caller(fence, token), theirs, nothing)
            assert len(walked) >= 18, walked
            for document, service, method in [
                (sandbox_pb2, "SandboxService", "ListSandboxes"), (codebase_pb2, "CodebaseService", "ListCodebases")]:
                service = document.DESCRIPTOR.services_by_name[service]
                method = service.methods_by_name[method]
                request = GetMessageClass(method.input_type)()
                code, said, answers = Caller(fence, token).call(service, method, request)
                text = str(answers)
                assert code == OK and "sb_" not in text and "cb_" not in text, (code, said, text)

    # It is all still there, and its owner's; that is the control too.
    for owner, ids, name in [(web, of_web, "web"), (ci, of_ci, "ci")]:
        box = ids["sandbox"]
        assert owner.do("Sandboxes.Get", sandbox=box).state == "running"
        assert owner.do("Sandboxes.Get", sandbox=name).id == box
        assert not owner.do("Execs.Get", sandbox=box, exec=ids["exec"]).HasField("ended")
        assert owner.do("Sessions.Get", sandbox=box, session=ids["session"]).state == "active"
        assert owner.do("Files.Read", sandbox=box, path="mine").data == b"secret"
        assert owner.do("Codebases.ReadFile", codebase=name, path="mine").data == b"secret"
        assert [x.id for x in owner.do("Sandboxes.List").sandboxes] == [box]
        assert [x.id for x in owner.do("Codebases.List").codebases] == [ids["codebase"]]
        # Events: one's own, what was refused too.
        audited = owner.do("Events.Audit", limit=1000)
        assert audited.events and {e.owner for e in audited.events} == {name}, audited
        kinds = {e.kind for e in audited.events}
        assert {"sandbox.created", "exec.started", "session.started"} <= kinds, kinds
        service = pb.DESCRIPTOR.services_by_name["Events"]
        code, _, told = owner.call(service, service.methods_by_name["Follow"], pb.FollowEvents(after=0))
        assert code == grpc.StatusCode.DEADLINE_EXCEEDED, code
        assert {e.owner for e in told} == {name} and "sandbox.created" in {e.kind for e in told}, told
        assert [e.id for e in told] == sorted({e.id for e in told})
    assert user.do("Sandboxes.List") == pb.SandboxList()
print("all is well")
