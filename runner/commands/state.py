"""The keys of what all commands are given, which is click's context object."""

# The descriptors that this process was started with: a runner.inherited.Inherited.
INHERITED = "inherited"
# Whether errors show tracebacks.
DEBUG = "debug"
# The spawner that ww run may have started already: a runner.spawners.HeadStart.
HEAD_START = "head start"
