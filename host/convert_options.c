/* SPDX-License-Identifier: Apache-2.0 */
/* What can be said before quantizing: which options another tool's layout has no place for. Conversion checks every matrix again. */
#include "convert.h"

rq_status rq_convert_check_options(const char *to, const rq_quant_opt *o, const char *rotate, const char *fold) {
    rq_status status = RQ_OK;
    const bool awq = strcmp(to, "awq") == 0, gptq = strncmp(to, "gptq", 4) == 0;
    RQ_TRY(rq_convert_check_target(to));
    if (strcmp(to, "requite") == 0) goto done;
    if (fold && strcmp(fold, "f16") != 0 && strcmp(fold, "f32") != 0)
        RQ_FAIL(RQ_ERR_ARG, "--fold %s: it is f16 or f32", fold);
    if (strcmp(rotate, "none") != 0 && !(fold && strcmp(rotate, "residual") == 0)) {
        RQ_FAIL(RQ_ERR_ARG, "--to %s has no place for --rotate %s%s", to, rotate,
                strcmp(rotate, "residual") == 0 ? " (--fold f16 puts it into embedding and head)" : "");
    }
    if (strcmp(to, "vptq") == 0) {
        if (o->round != RQ_ROUND_VQ || !o->vec_out)
            RQ_FAIL(RQ_ERR_ARG, "--to vptq is for --preset vptq, or --round vq --vec-axis out");
        if (o->outliers) RQ_FAIL(RQ_ERR_ARG, "--to vptq has no place for --outliers %d", o->outliers);
        if (o->codes2 > o->codes)
            RQ_FAIL(RQ_ERR_ARG, "--to vptq: --codes2 %d is more than --codes %d, which VPTQ does not decode", o->codes2,
                    o->codes);
        goto done;
    }
    if (strcmp(to, "aqlm") == 0) {
        if (o->round != RQ_ROUND_VQ || o->vec_out) RQ_FAIL(RQ_ERR_ARG, "--to aqlm is for --round vq --vec-axis in");
        if (o->outliers || o->group || o->book_cols || (o->codes2 && o->codes2 != o->codes)) {
            RQ_FAIL(RQ_ERR_ARG,
                    "--to aqlm wants one codebook or two of one size, one scale a row, and no outliers: --outliers "
                    "0 --group 0 --book-cols 0 --codes2 0 or that of --codes");
        }
        goto done;
    }
    if (o->round != RQ_ROUND_GRID && (awq || gptq || o->round != RQ_ROUND_W4A8))
        RQ_FAIL(RQ_ERR_ARG, "--to %s has no place for --round %s", to, rq_round_name(o->round));
    if (o->round == RQ_ROUND_W4A8 && o->group)
        RQ_FAIL(RQ_ERR_ARG, "--to %s has one level of scales: --group 0, not %lld", to, (long long)o->group);
    if (awq && o->bits != 4) RQ_FAIL(RQ_ERR_ARG, "--to awq has 4 bits, not %d", o->bits);
    if ((awq || gptq) && o->scale_dtype != RQ_F16) RQ_FAIL(RQ_ERR_ARG, "--to %s has scales in fp16", to);
    if (awq && o->act_order && !o->static_groups && rq_comp_get(o->comp)->propagates && o->group)
        RQ_FAIL(RQ_ERR_ARG, "--to awq has groups in the order of the inputs: --static-groups");
done:
    return status;
}
