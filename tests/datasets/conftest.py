"""Settings of the property tests in this folder."""

from hypothesis import HealthCheck, settings

# Other processes may use the cores, so time limits would make these tests fail at random.
settings.register_profile("no time limits", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("no time limits")
