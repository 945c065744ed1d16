from tests.hub import hub  # noqa: F401
from tests.places import place  # noqa: F401
from tests.s3 import bucket, s3_endpoint  # noqa: F401
