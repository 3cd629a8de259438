# trimvla on JetPack 6 (Orin): CUDA 12.6, TensorRT 10.3, Python 3.10, all from the base image.
#   docker build -f launch/jetson/jetpack6.Dockerfile --build-arg BASE=<NVIDIA's l4t-jetpack, r36.4.0> -t trimvla .
#   docker run --runtime nvidia --network none -v trimvla-run:/run/trimvla --device /dev/video0 trimvla doctor
# Engines are built on the board, not here: they are tied to its GPU. Keep them in a volume:
#   docker run --runtime nvidia -v trimvla-engines:/root/.cache/trimvla trimvla build tabletop-trimmed
# TensorRT cannot be imported while the image is built: its DLA library comes from the host, by the runtime `nvidia`.
ARG BASE
FROM ${BASE}
RUN apt-get update && apt-get install -y --no-install-recommends python3-pip python3-venv python3-libnvinfer \
    && rm -rf /var/lib/apt/lists/*
COPY . /src
RUN python3 -m venv --system-site-packages /opt/trimvla && /opt/trimvla/bin/pip install --no-cache-dir '/src[camera]' 'cuda-bindings>=12.8,<13' \
    && rm -rf /src && /opt/trimvla/bin/python -c "import cuda.bindings.runtime, trimvla.runtime.backends.tensorrt.runner"
ENV OMP_WAIT_POLICY=PASSIVE PATH=/opt/trimvla/bin:$PATH
ENTRYPOINT ["trimvla"]
CMD ["doctor"]
