"""Wire models and enums of the v4 API: pydantic only, imported by the service, the client and the worker alike.

Times are aware UTC datetimes of the database's clock; durations are in the unit their name ends in.

What belongs together lies in a module of its own; all names are here.
"""

from job_api.schemas.exports import *
from job_api.schemas.failures import *
from job_api.schemas.fields import *
from job_api.schemas.jobs import *
from job_api.schemas.leases import *
from job_api.schemas.limits import *
from job_api.schemas.logs import *
from job_api.schemas.projects import *
from job_api.schemas.results import *
from job_api.schemas.reviews import *
from job_api.schemas.service import *
from job_api.schemas.words import *
