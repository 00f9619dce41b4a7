/* SPDX-License-Identifier: Apache-2.0 */
/* Between the files of the parser: parse_text.c (characters), parse_symbols.c (variables, registers), parse_body.c (scopes,
 * labels, statements), parse_module.c (calls, kernels, modules). */
#ifndef RQ_GPUSIM_PARSE_H
#define RQ_GPUSIM_PARSE_H
#include "core.h"

void gs_parse_skip_space(gs_parser *p);
void gs_parse_word(gs_parser *p, char *out, size_t size);
bool gs_parse_accept(gs_parser *p, char c);
void gs_parse_expect(gs_parser *p, char c);
int64_t gs_parse_integer(gs_parser *p);
void gs_parse_to_line_end(gs_parser *p);
void gs_parse_past(gs_parser *p, char c);
void gs_parse_past_braces(gs_parser *p);
uint32_t gs_parse_align_up(uint32_t v, uint32_t a);
const gs_symbol *gs_parse_find_in(const gs_symbol *s, int n, const char *name);
gs_symbol *gs_parse_push_symbol(gs_parser *p);
gs_type gs_parse_variable_head(gs_parser *p, uint32_t *align, char *name, size_t size);
size_t gs_parse_array_size(gs_parser *p, bool *open);
void gs_parse_variable(gs_parser *p, gs_space space, bool external);
void gs_parse_registers(gs_parser *p);
void gs_parse_place_label(gs_parser *p, const char *name);
void gs_parse_close_labels(gs_parser *p, int scope, int outer);
void gs_parse_body(gs_parser *p);
void gs_parse_no_label_missing(gs_parser *p);

#endif
