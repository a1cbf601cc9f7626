"""What is computed again of stored results."""

from job_api import projects, stored_chemistry
from job_api.routes.context import ProjectPath, ServiceDep, door, route
from job_api.schemas import ChemistryRows, ChemistryStored, Role

router = door("/v4/{project}/results", "results")


@router.post("/chemistry", **route(Role.SUBMIT, 404, 413))
async def put_chemistry(running: ServiceDep, project: ProjectPath, computed: ChemistryRows) -> ChemistryStored:
    """Store what was computed again of up to 1,000 rows, and of their images' names; they take a new `seq`.

    SMILES and confidence are never changed. A row whose `seq` is not the one given was replaced, and is left alone.
    """
    async with running.database.transaction() as connection:
        found = await projects.keep(connection, project)
        return await stored_chemistry.store(connection, found["id"], computed.rows)
