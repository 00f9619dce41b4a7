/* SPDX-License-Identifier: Apache-2.0 */
/* Error codes: names as in the enumeration, sentences of our own. By number, so that any release of the headers will do. */
#include <string.h>

#include "rt.h"

typedef struct error_row {
    int code;
    const char *name, *text;
} error_row;

// clang-format off
static const error_row errors[] = {
    {0, "cudaSuccess", "no error"},
    {1, "cudaErrorInvalidValue", "an argument of the call is not valid"},
    {2, "cudaErrorMemoryAllocation", "out of memory"},
    {3, "cudaErrorInitializationError", "the driver or runtime could not start"},
    {4, "cudaErrorCudartUnloading", "the driver is shutting down"},
    {5, "cudaErrorProfilerDisabled", "profiling is not possible in this run"},
    {6, "cudaErrorProfilerNotInitialized", "the profiler was not initialised"},
    {7, "cudaErrorProfilerAlreadyStarted", "the profiler runs already"},
    {8, "cudaErrorProfilerAlreadyStopped", "the profiler does not run"},
    {9, "cudaErrorInvalidConfiguration", "the sizes of grid or block are beyond the device's limits"},
    {12, "cudaErrorInvalidPitchValue", "a pitch is not valid"},
    {13, "cudaErrorInvalidSymbol", "no such device symbol"},
    {16, "cudaErrorInvalidHostPointer", "a host pointer is not valid"},
    {17, "cudaErrorInvalidDevicePointer", "a device pointer is not valid"},
    {18, "cudaErrorInvalidTexture", "a texture is not valid"},
    {19, "cudaErrorInvalidTextureBinding", "the texture is not bound"},
    {20, "cudaErrorInvalidChannelDescriptor", "a channel descriptor is not valid"},
    {21, "cudaErrorInvalidMemcpyDirection", "the direction of a copy is not valid"},
    {22, "cudaErrorAddressOfConstant", "the address of a constant variable was taken"},
    {23, "cudaErrorTextureFetchFailed", "a texture could not be read"},
    {24, "cudaErrorTextureNotBound", "a texture was read before it was bound"},
    {25, "cudaErrorSynchronizationError", "synchronisation failed"},
    {26, "cudaErrorInvalidFilterSetting", "linear filtering of values that are no floats"},
    {27, "cudaErrorInvalidNormSetting", "normalised reading of values that cannot be"},
    {28, "cudaErrorMixedDeviceExecution", "device and emulated code cannot be mixed"},
    {31, "cudaErrorNotYetImplemented", "the call is not implemented"},
    {32, "cudaErrorMemoryValueTooLarge", "an emulated device pointer is out of range"},
    {34, "cudaErrorStubLibrary", "a stub of the driver library was loaded"},
    {35, "cudaErrorInsufficientDriver", "the driver is older than the runtime needs"},
    {36, "cudaErrorCallRequiresNewerDriver", "the call needs a newer driver"},
    {37, "cudaErrorInvalidSurface", "a surface is not valid"},
    {43, "cudaErrorDuplicateVariableName", "two variables have one name"},
    {44, "cudaErrorDuplicateTextureName", "two textures have one name"},
    {45, "cudaErrorDuplicateSurfaceName", "two surfaces have one name"},
    {46, "cudaErrorDevicesUnavailable", "all devices are busy or not available"},
    {49, "cudaErrorIncompatibleDriverContext", "the current context does not suit the runtime"},
    {52, "cudaErrorMissingConfiguration", "a kernel was called without its configuration"},
    {53, "cudaErrorPriorLaunchFailure", "an earlier launch failed"},
    {65, "cudaErrorLaunchMaxDepthExceeded", "launches from the device are nested too deep"},
    {66, "cudaErrorLaunchFileScopedTex", "the kernel uses textures of file scope"},
    {67, "cudaErrorLaunchFileScopedSurf", "the kernel uses surfaces of file scope"},
    {68, "cudaErrorSyncDepthExceeded", "synchronisation on the device is nested too deep"},
    {69, "cudaErrorLaunchPendingCountExceeded", "too many launches from the device are pending"},
    {98, "cudaErrorInvalidDeviceFunction", "no such kernel for this device"},
    {100, "cudaErrorNoDevice", "there is no device"},
    {101, "cudaErrorInvalidDevice", "there is no device of this number"},
    {102, "cudaErrorDeviceNotLicensed", "the device has no licence"},
    {103, "cudaErrorSoftwareValidityNotEstablished", "the driver could not verify itself"},
    {127, "cudaErrorStartupFailure", "the runtime could not start"},
    {200, "cudaErrorInvalidKernelImage", "the image of device code is not valid"},
    {201, "cudaErrorDeviceUninitialized", "there is no context"},
    {205, "cudaErrorMapBufferObjectFailed", "a buffer could not be mapped"},
    {206, "cudaErrorUnmapBufferObjectFailed", "a buffer could not be unmapped"},
    {207, "cudaErrorArrayIsMapped", "the array is mapped"},
    {208, "cudaErrorAlreadyMapped", "the resource is mapped already"},
    {209, "cudaErrorNoKernelImageForDevice", "there is no code for this device"},
    {210, "cudaErrorAlreadyAcquired", "the resource is taken already"},
    {211, "cudaErrorNotMapped", "the resource is not mapped"},
    {212, "cudaErrorNotMappedAsArray", "the resource is not mapped as an array"},
    {213, "cudaErrorNotMappedAsPointer", "the resource is not mapped as a pointer"},
    {214, "cudaErrorECCUncorrectable", "a memory error could not be corrected"},
    {215, "cudaErrorUnsupportedLimit", "the device has no such limit"},
    {216, "cudaErrorDeviceAlreadyInUse", "another thread uses the context"},
    {217, "cudaErrorPeerAccessUnsupported", "the two devices cannot reach each other"},
    {218, "cudaErrorInvalidPtx", "the PTX cannot be compiled"},
    {219, "cudaErrorInvalidGraphicsContext", "the graphics context is not valid"},
    {220, "cudaErrorNvlinkUncorrectable", "a link between devices failed"},
    {221, "cudaErrorJitCompilerNotFound", "there is no compiler of PTX"},
    {222, "cudaErrorUnsupportedPtxVersion", "the PTX is of a newer version"},
    {223, "cudaErrorJitCompilationDisabled", "compiling PTX is switched off"},
    {224, "cudaErrorUnsupportedExecAffinity", "the device has no such execution affinity"},
    {225, "cudaErrorUnsupportedDevSideSync", "the code synchronises on the device in a way that is gone"},
    {226, "cudaErrorContained", "a contained hardware error"},
    {300, "cudaErrorInvalidSource", "the source of device code is not valid"},
    {301, "cudaErrorFileNotFound", "no such file"},
    {302, "cudaErrorSharedObjectSymbolNotFound", "a shared library lacks a symbol"},
    {303, "cudaErrorSharedObjectInitFailed", "a shared library could not start"},
    {304, "cudaErrorOperatingSystem", "a call of the operating system failed"},
    {400, "cudaErrorInvalidResourceHandle", "a handle is not valid, or belongs to another device"},
    {401, "cudaErrorIllegalState", "a resource is not in a state for this"},
    {402, "cudaErrorLossyQuery", "the answer would leave something out"},
    {500, "cudaErrorSymbolNotFound", "no such name"},
    {600, "cudaErrorNotReady", "not finished yet"},
    {700, "cudaErrorIllegalAddress", "a kernel touched memory that is not there"},
    {701, "cudaErrorLaunchOutOfResources", "the launch needs more than an SM has"},
    {702, "cudaErrorLaunchTimeout", "a kernel did not end"},
    {703, "cudaErrorLaunchIncompatibleTexturing", "the kernel's texturing mode does not fit"},
    {704, "cudaErrorPeerAccessAlreadyEnabled", "access to the peer is enabled already"},
    {705, "cudaErrorPeerAccessNotEnabled", "access to the peer is not enabled"},
    {708, "cudaErrorSetOnActiveProcess", "too late: the device is in use"},
    {709, "cudaErrorContextIsDestroyed", "the context was destroyed"},
    {710, "cudaErrorAssert", "an assertion failed in a kernel"},
    {711, "cudaErrorTooManyPeers", "too many peers"},
    {712, "cudaErrorHostMemoryAlreadyRegistered", "the memory is registered already"},
    {713, "cudaErrorHostMemoryNotRegistered", "the memory is not registered"},
    {714, "cudaErrorHardwareStackError", "a device stack overflowed or was damaged"},
    {715, "cudaErrorIllegalInstruction", "a kernel met an illegal instruction"},
    {716, "cudaErrorMisalignedAddress", "a kernel used an address that is not aligned"},
    {717, "cudaErrorInvalidAddressSpace", "a kernel used an address of the wrong space"},
    {718, "cudaErrorInvalidPc", "a kernel jumped to nowhere"},
    {719, "cudaErrorLaunchFailure", "a kernel failed"},
    {720, "cudaErrorCooperativeLaunchTooLarge", "a cooperative launch has more blocks than fit at a time"},
    {721, "cudaErrorTensorMemoryLeak", "a kernel left tensor memory allocated"},
    {800, "cudaErrorNotPermitted", "not permitted here"},
    {801, "cudaErrorNotSupported", "not supported"},
    {802, "cudaErrorSystemNotReady", "the system is not ready"},
    {803, "cudaErrorSystemDriverMismatch", "the display and CUDA drivers do not match"},
    {804, "cudaErrorCompatNotSupportedOnDevice", "no forward compatibility on this device"},
    {805, "cudaErrorMpsConnectionFailed", "MPS: no connection"},
    {806, "cudaErrorMpsRpcFailure", "MPS: a remote call failed"},
    {807, "cudaErrorMpsServerNotReady", "MPS: the server is not ready"},
    {808, "cudaErrorMpsMaxClientsReached", "MPS: too many clients"},
    {809, "cudaErrorMpsMaxConnectionsReached", "MPS: too many connections"},
    {810, "cudaErrorMpsClientTerminated", "MPS: the client was ended"},
    {811, "cudaErrorCdpNotSupported", "no launches from the device here"},
    {812, "cudaErrorCdpVersionMismatch", "two versions of launching from the device are mixed"},
    {900, "cudaErrorStreamCaptureUnsupported", "not allowed while a stream captures"},
    {901, "cudaErrorStreamCaptureInvalidated", "an earlier error ended this capture"},
    {902, "cudaErrorStreamCaptureMerge", "two captures would become one"},
    {903, "cudaErrorStreamCaptureUnmatched", "the capture did not begin in this stream"},
    {904, "cudaErrorStreamCaptureUnjoined", "a forked stream was not joined before the capture's end"},
    {905, "cudaErrorStreamCaptureIsolation", "a captured stream would wait for work outside of the capture"},
    {906, "cudaErrorStreamCaptureImplicit", "the default stream would wait for a stream that captures"},
    {907, "cudaErrorCapturedEvent", "the event was last recorded in a capture"},
    {908, "cudaErrorStreamCaptureWrongThread", "the capture began in another thread"},
    {909, "cudaErrorTimeout", "the time is over"},
    {910, "cudaErrorGraphExecUpdateFailure", "the graph differs too much for an update"},
    {911, "cudaErrorExternalDevice", "a device outside failed"},
    {912, "cudaErrorInvalidClusterSize", "the cluster's size is not valid"},
    {913, "cudaErrorFunctionNotLoaded", "the function is not loaded"},
    {914, "cudaErrorInvalidResourceType", "a resource is of the wrong type"},
    {915, "cudaErrorInvalidResourceConfiguration", "a resource is configured in a way that cannot be"},
    {999, "cudaErrorUnknown", "an error of unknown kind"},
    {10000, "cudaErrorApiFailureBase", "base of errors that are not used"},
};
// clang-format on

static const error_row *row_of(cudaError_t e) {
    for (size_t i = 0; i < sizeof errors / sizeof errors[0]; ++i) {
        if (errors[i].code == (int)e) return &errors[i];
    }
    return NULL;
}

const char *rt_error_text(cudaError_t e) {
    const error_row *r = row_of(e);
    return r ? r->text : "no such error code";
}

const char *rt_error_name(cudaError_t e) {
    const error_row *r = row_of(e);
    return r ? r->name : "no such error code";
}

const char *cudaGetErrorName(cudaError_t e) { return rt_error_name(e); }
const char *cudaGetErrorString(cudaError_t e) { return rt_error_text(e); }

/* The error that a fault left on the device comes first, and stays. */
cudaError_t cudaGetLastError(void) {
    rt_enter_always();
    cudaError_t e = rt_current()->sticky;
    if (e == cudaSuccess) e = rt_self.last;
    rt_self.last = cudaSuccess;
    rt_leave(cudaSuccess);
    return e;
}

cudaError_t cudaPeekAtLastError(void) {
    rt_enter_always();
    cudaError_t e = rt_current()->sticky;
    if (e == cudaSuccess) e = rt_self.last;
    rt_leave(cudaSuccess);
    return e;
}
