/* SPDX-License-Identifier: Apache-2.0 */
/* The driver API's stand-in. */
#ifndef RQ_GPUSIM_RT_DRIVER_H
#define RQ_GPUSIM_RT_DRIVER_H
#include "rt.h"
#include "rt_copy.h"
#include "rt_launch.h"

CUresult rt_driver_result(cudaError_t e);

#endif
