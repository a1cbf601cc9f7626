# DECIMER's weights on top of the dependencies, so that an image of changed code need not read them again.
ARG PARENT=decimer-jobs-worker-dependencies
FROM ${PARENT}
COPY weights /opt/weights
