from .connection import bounded_answers as bounded_answers
from .connection import hidden_pandas as hidden_pandas
from .connection import redact_addresses as redact_addresses
from .connection import redact_credentials as redact_credentials
from .connection import registry_address as registry_address
from .connection import registry_client as registry_client
from .connection import registry_errors as registry_errors
from .connection import set_service_timeouts as set_service_timeouts
from .model_uri import default_endpoint_name as default_endpoint_name
from .model_uri import parse_model_uri as parse_model_uri
from .resolution import PARITY_TAG as PARITY_TAG
from .resolution import ResolvedModel as ResolvedModel
from .resolution import all_versions as all_versions
from .resolution import check_new_name as check_new_name
from .resolution import registered_version as registered_version
from .resolution import resolve as resolve

__all__: list[str]
