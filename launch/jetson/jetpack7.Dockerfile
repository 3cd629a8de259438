# trimvla on JetPack 7 (Thor, and Orin from 7.2 on): CUDA 13, Python 3.12; TensorRT from the package list of the base image.
#   docker build -f launch/jetson/jetpack7.Dockerfile --build-arg BASE=<NVIDIA's cuda, 13.0-runtime-ubuntu24.04> -t trimvla .
#   docker run --runtime nvidia --network none -v trimvla-run:/run/trimvla --device /dev/video0 trimvla doctor
# Engines are built on the board, not here: they are tied to its GPU. Keep them in a volume:
#   docker run --runtime nvidia -v trimvla-engines:/root/.cache/trimvla trimvla build tabletop-trimmed
ARG BASE
FROM ${BASE}
# 10.13 is that of JetPack 7.0 and 7.1, 10.16 that of 7.2; what is newest in the list may not run on JetPack at all.
ARG TENSORRT=10.13.*
RUN printf 'Package: *nvinfer* *nvonnxparsers*\nPin: version %s\nPin-Priority: 1001\n' "${TENSORRT}" \
    > /etc/apt/preferences.d/tensorrt
RUN apt-get update && apt-get install -y --no-install-recommends python3-pip python3-venv python3-libnvinfer \
    && rm -rf /var/lib/apt/lists/*
COPY . /src
RUN python3 -m venv --system-site-packages /opt/trimvla && /opt/trimvla/bin/pip install --no-cache-dir '/src[camera]' 'cuda-bindings>=13,<14' \
    && rm -rf /src && /opt/trimvla/bin/python -c "import cuda.bindings.runtime, trimvla.runtime.backends.tensorrt.runner"
ENV OMP_WAIT_POLICY=PASSIVE PATH=/opt/trimvla/bin:$PATH
ENTRYPOINT ["trimvla"]
CMD ["doctor"]
