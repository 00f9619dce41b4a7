/* SPDX-License-Identifier: Apache-2.0 */
/* Clock and temperature of the GPU now, from the driver's management library, loaded by name: where it is missing, as in the
 * simulator, both are unknown. They are read, never set. */
#ifndef BENCH_CUDA_CLOCKS_H
#define BENCH_CUDA_CLOCKS_H
#include <cuda_runtime_api.h>
#include <dlfcn.h>

class bench_clocks {
  public:
    bench_clocks() {
        char bus[32] = "";
        lib_ = dlopen("libnvidia-ml.so.1", RTLD_NOW);
        if (!lib_) return;
        const auto init = find<int (*)()>("nvmlInit_v2");
        const auto handle = find<int (*)(const char *, void **)>("nvmlDeviceGetHandleByPciBusId_v2");
        clock_ = find<int (*)(void *, int, unsigned *)>("nvmlDeviceGetClockInfo");
        temperature_ = find<int (*)(void *, int, unsigned *)>("nvmlDeviceGetTemperature");
        if (!init || !handle || init() != 0) return;
        if (cudaDeviceGetPCIBusId(bus, sizeof bus, 0) != cudaSuccess || handle(bus, &device_) != 0) device_ = nullptr;
    }
    /* MHz and degrees Celsius; -1 when not known. */
    int sm_mhz() const { return ask(clock_, 1); }
    int celsius() const { return ask(temperature_, 0); }

  private:
    void *lib_ = nullptr, *device_ = nullptr;
    int (*clock_)(void *, int, unsigned *) = nullptr, (*temperature_)(void *, int, unsigned *) = nullptr;

    template <class F> F find(const char *name) const { return reinterpret_cast<F>(dlsym(lib_, name)); }
    int ask(int (*what)(void *, int, unsigned *), int which) const {
        unsigned value = 0;
        return device_ && what && what(device_, which, &value) == 0 ? (int)value : -1;
    }
};
#endif
