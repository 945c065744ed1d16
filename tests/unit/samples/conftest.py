from tests.s3 import bucket, s3_endpoint  # noqa: F401
