/* SPDX-License-Identifier: Apache-2.0 */
/* Configurations from config.json and from GGUF, what is refused and in which words, the check against the tensors, and
 * config.json written for a GGUF model. */
#include <math.h>

#include "readers_build.h"

#define LLAMA                                                                                                          \
    "\"architectures\":[\"LlamaForCausalLM\"],\"model_type\":\"llama\",\"num_hidden_layers\":2,\"hidden_size\":64,"    \
    "\"intermediate_size\":96,\"num_attention_heads\":4,\"num_key_value_heads\":2,\"vocab_size\":100,"                 \
    "\"max_position_embeddings\":4096"
#define QWEN2                                                                                                          \
    "\"architectures\":[\"Qwen2ForCausalLM\"],\"model_type\":\"qwen2\",\"num_hidden_layers\":2,\"hidden_size\":64,"    \
    "\"intermediate_size\":96,\"num_attention_heads\":4,\"num_key_value_heads\":2,\"vocab_size\":100,"                 \
    "\"max_position_embeddings\":32768"
#define MISTRAL                                                                                                        \
    "\"architectures\":[\"MistralForCausalLM\"],\"model_type\":\"mistral\",\"num_hidden_layers\":2,\"hidden_size\":"   \
    "64,"                                                                                                              \
    "\"intermediate_size\":96,\"num_attention_heads\":4,\"num_key_value_heads\":2,\"vocab_size\":100,"                 \
    "\"max_position_embeddings\":32768"

static rq_status parse(rq_config *c, const char *text, const char *generation) {
    return rq_config_from_json(c, text, (int64_t)strlen(text), generation, generation ? (int64_t)strlen(generation) : 0,
                               "config.json");
}

static rq_config accepted(const char *text, const char *generation) {
    rq_config c;
    if (parse(&c, text, generation) != RQ_OK) fail_msg("%s: %s", text, rq_last_error());
    return c;
}

static void defaults(void **state) {
    (void)state;
    rq_config c = accepted("{" LLAMA "}", NULL);
    assert_string_equal(c.arch, "llama");
    assert_int_equal(c.n_layer, 2);
    assert_int_equal(c.d_model, 64);
    assert_int_equal(c.d_ff, 96);
    assert_int_equal(c.n_head, 4);
    assert_int_equal(c.n_kv_head, 2);
    assert_int_equal(c.head_dim, 16);
    assert_int_equal(c.n_vocab, 100);
    assert_int_equal(c.max_seq, 4096);
    assert_true(c.rms_eps == 1e-6f && c.rope_theta == 10000.0);
    assert_int_equal(c.rope_scaling, RQ_ROPE_PLAIN);
    assert_false(c.tied_head || c.qkv_bias || c.o_bias || c.mlp_bias);
    assert_int_equal(c.bos_id, -1);
    assert_int_equal(c.n_eos, 0);
    c = accepted("{" QWEN2 "}", NULL);
    assert_true(c.qkv_bias && !c.o_bias);
    c = accepted("{" LLAMA ",\"attention_bias\":true,\"mlp_bias\":true,\"head_dim\":32,\"rope_scaling\":null,"
                 "\"tie_word_embeddings\":true,\"rms_norm_eps\":1e-5,\"rope_theta\":500000,\"bos_token_id\":1}",
                 NULL);
    assert_true(c.qkv_bias && c.o_bias && c.mlp_bias && c.tied_head);
    assert_int_equal(c.head_dim, 32);
    assert_true(c.rms_eps == 1e-5f && c.rope_theta == 500000.0);
    assert_int_equal(c.bos_id, 1);
    c = accepted("{\"model_type\":\"llama\",\"num_hidden_layers\":1,\"hidden_size\":64,\"intermediate_size\":96,"
                 "\"num_attention_heads\":4,\"vocab_size\":100,\"max_position_embeddings\":10}",
                 NULL);
    assert_int_equal(c.n_kv_head, 4); /* llama: as many as heads */
}

static void end_ids(void **state) {
    (void)state;
    rq_config c = accepted("{" LLAMA ",\"eos_token_id\":7}", NULL);
    assert_int_equal(c.n_eos, 1);
    assert_int_equal(c.eos_id[0], 7);
    c = accepted("{" LLAMA ",\"eos_token_id\":[7,8]}", "{\"eos_token_id\":[8,9]}");
    assert_int_equal(c.n_eos, 3);
    assert_int_equal(c.eos_id[2], 9);
    c = accepted("{" LLAMA ",\"eos_token_id\":null}", "{\"temperature\":0.6}");
    assert_int_equal(c.n_eos, 0);
    assert_int_equal(parse(&c, "{" LLAMA "}", "{\"eos_token_id\":100}"), RQ_ERR_INPUT);
    assert_int_equal(parse(&c, "{" LLAMA "}", "["), RQ_ERR_INPUT);
}

static void rope_kinds(void **state) {
    (void)state;
    static const char *const llama3[] = {
        "{" LLAMA
        ",\"rope_theta\":5e5,\"rope_scaling\":{\"rope_type\":\"llama3\",\"factor\":8.0,\"low_freq_factor\":1.0,"
        "\"high_freq_factor\":4.0,\"original_max_position_embeddings\":8192}}",
        "{" LLAMA
        ",\"rope_parameters\":{\"rope_theta\":5e5,\"rope_type\":\"llama3\",\"factor\":8,\"low_freq_factor\":1,"
        "\"high_freq_factor\":4,\"original_max_position_embeddings\":8192}}"};
    for (int i = 0; i < 2; ++i) {
        rq_config c = accepted(llama3[i], NULL);
        assert_int_equal(c.rope_scaling, RQ_ROPE_LLAMA3);
        assert_true(c.rope_theta == 5e5 && c.rope_factor == 8 && c.rope_low_freq_factor == 1 &&
                    c.rope_high_freq_factor == 4);
        assert_int_equal(c.rope_original_max_seq, 8192);
    }
    rq_config c = accepted("{" LLAMA ",\"rope_scaling\":{\"type\":\"linear\",\"factor\":2.5}}", NULL);
    assert_int_equal(c.rope_scaling, RQ_ROPE_LINEAR);
    assert_true(c.rope_factor == 2.5);
    c = accepted("{" LLAMA ",\"rope_parameters\":{\"rope_type\":\"default\",\"rope_theta\":1e6}}", NULL);
    assert_int_equal(c.rope_scaling, RQ_ROPE_PLAIN);
    assert_true(c.rope_theta == 1e6);
}

static void windows(void **state) {
    (void)state;
    accepted("{" QWEN2 ",\"sliding_window\":4096,\"use_sliding_window\":false}", NULL);
    accepted("{" QWEN2 ",\"sliding_window\":32768,\"use_sliding_window\":true,\"max_window_layers\":0}", NULL);
    accepted("{" QWEN2 ",\"sliding_window\":4096,\"use_sliding_window\":true,\"max_window_layers\":2}", NULL);
    accepted("{" QWEN2 ",\"sliding_window\":null,\"layer_types\":[\"full_attention\",\"full_attention\"]}", NULL);
    accepted("{" MISTRAL ",\"sliding_window\":null}", NULL);
    accepted("{" MISTRAL ",\"sliding_window\":32768}", NULL);
}

static void refusals(void **state) {
    (void)state;
    static const struct {
        rq_status status;
        const char *text, *words;
    } cases[] = {
        {RQ_ERR_INPUT, "", "line"},
        {RQ_ERR_INPUT, "[]", "not a JSON object"},
        {RQ_ERR_INPUT, "{}", "neither model_type"},
        {RQ_ERR_INPUT, "{" LLAMA ",\"hidden_size\":64}", "line 1"}, /* twice */
        {RQ_ERR_INPUT, "{\"model_type\":7}", "not a string"},
        {RQ_ERR_INPUT, "{\"model_type\":\"llama\",\"architectures\":[]}", "list of one"},
        {RQ_ERR_UNSUPPORTED, "{\"model_type\":\"gemma2\"}", "gemma2"},
        {RQ_ERR_UNSUPPORTED, "{\"architectures\":[\"PhiForCausalLM\"]}", "PhiForCausalLM"},
        {RQ_ERR_UNSUPPORTED, "{\"model_type\":\"llama\",\"architectures\":[\"Qwen2ForCausalLM\"]}", "Qwen2"},
        {RQ_ERR_UNSUPPORTED, "{\"model_type\":\"llama\",\"architectures\":[\"LlamaForSequenceClassification\"]}",
         "Seq"},
        {RQ_ERR_INPUT, "{\"model_type\":\"llama\"}", "num_hidden_layers is missing"},
        {RQ_ERR_UNSUPPORTED, "{" LLAMA ",\"hidden_act\":\"gelu\"}", "gelu"},
        {RQ_ERR_UNSUPPORTED, "{" LLAMA ",\"hidden_act\":3}", "hidden_act"},
        {RQ_ERR_INPUT, "{" LLAMA ",\"tie_word_embeddings\":1}", "neither true nor false"},
        {RQ_ERR_INPUT, "{" LLAMA ",\"rms_norm_eps\":\"1e-5\"}", "not a number"},
        {RQ_ERR_INPUT, "{" LLAMA ",\"rms_norm_eps\":0}", "positive"},
        {RQ_ERR_INPUT, "{" LLAMA ",\"rms_norm_eps\":-1e-5}", "positive"},
        {RQ_ERR_INPUT, "{" LLAMA ",\"rope_theta\":0}", "positive"},
        {RQ_ERR_INPUT, "{" LLAMA ",\"head_dim\":15}", "odd"},
        {RQ_ERR_INPUT, "{" LLAMA ",\"head_dim\":0}", "head dimension is 0"},
        {RQ_ERR_INPUT, "{" LLAMA ",\"head_dim\":16.0}", "not an integer"},
        {RQ_ERR_INPUT, "{" LLAMA ",\"head_dim\":9223372036854775807}", "head dimension"},
        {RQ_ERR_INPUT, "{" LLAMA ",\"head_dim\":9223372036854775808}", "line 1"},
        {RQ_ERR_INPUT, "{" LLAMA ",\"bos_token_id\":100}", "bos_token_id 100"},
        {RQ_ERR_INPUT, "{" LLAMA ",\"eos_token_id\":-1}", "id -1"},
        {RQ_ERR_INPUT, "{" LLAMA ",\"eos_token_id\":\"x\"}", "neither"},
        {RQ_ERR_INPUT, "{" LLAMA ",\"eos_token_id\":[1.5]}", "non-integer"},
        {RQ_ERR_UNSUPPORTED, "{" LLAMA ",\"eos_token_id\":[1,2,3,4,5,6,7,8,9]}", "more than 8"},
        {RQ_ERR_UNSUPPORTED, "{" LLAMA ",\"rope_scaling\":{\"rope_type\":\"yarn\",\"factor\":2}}", "yarn"},
        {RQ_ERR_UNSUPPORTED, "{" LLAMA ",\"rope_scaling\":{\"type\":\"dynamic\",\"factor\":2}}", "dynamic"},
        {RQ_ERR_INPUT, "{" LLAMA ",\"rope_scaling\":{\"factor\":2}}", "no rope_type"},
        {RQ_ERR_INPUT, "{" LLAMA ",\"rope_scaling\":[]}", "not an object"},
        {RQ_ERR_INPUT, "{" LLAMA ",\"rope_scaling\":{\"type\":\"linear\"}}", "factor is missing"},
        {RQ_ERR_INPUT, "{" LLAMA ",\"rope_scaling\":{\"type\":\"linear\",\"factor\":-1}}", "positive"},
        {RQ_ERR_INPUT, "{" LLAMA ",\"rope_scaling\":{\"type\":\"llama3\",\"factor\":8}}", "low_freq_factor"},
        {RQ_ERR_INPUT,
         "{" LLAMA ",\"rope_scaling\":{\"type\":\"llama3\",\"factor\":8,\"low_freq_factor\":4,\"high_freq_factor\":4,"
         "\"original_max_position_embeddings\":8192}}",
         "not above"},
        {RQ_ERR_UNSUPPORTED, "{" LLAMA ",\"partial_rotary_factor\":0.5}", "0.5"},
        {RQ_ERR_INPUT, "{" LLAMA ",\"quantization_config\":{}}", "no quant_method"},
        {RQ_ERR_UNSUPPORTED, "{" LLAMA ",\"quantization_config\":{\"quant_method\":\"quip\"}}", "quip"},
        {RQ_ERR_UNSUPPORTED, "{" MISTRAL "}", "4096 of 32768"}, /* the class's default window */
        {RQ_ERR_UNSUPPORTED, "{" MISTRAL ",\"sliding_window\":4096}", "4096 of 32768"},
        {RQ_ERR_UNSUPPORTED, "{" QWEN2 ",\"use_sliding_window\":true,\"max_window_layers\":1,\"sliding_window\":9}",
         "9 of 32768"},
        {RQ_ERR_UNSUPPORTED,
         "{" QWEN2 ",\"sliding_window\":9,\"layer_types\":[\"full_attention\",\"sliding_attention\"]}", "9 of 32768"},
        {RQ_ERR_UNSUPPORTED, "{" MISTRAL ",\"sliding_window\":null,\"attention_bias\":true}", "attention_bias"},
        {RQ_ERR_UNSUPPORTED, "{" QWEN2 ",\"mlp_bias\":true}", "mlp_bias"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; ++i) {
        rq_config c;
        rq_status status = parse(&c, cases[i].text, NULL);
        if (status != cases[i].status || !strstr(rq_last_error(), cases[i].words)) {
            fail_msg("%s: status %d, %s", cases[i].text, status, rq_last_error());
        }
    }
    accepted("{" LLAMA ",\"quantization_config\":{\"quant_method\":\"requite\"}}", NULL);
    accepted("{" LLAMA ",\"quantization_config\":{\"quant_method\":\"compressed-tensors\"}}", NULL);
    accepted("{" LLAMA ",\"quantization_config\":null}", NULL);
}

/* One size replaced at a time. */
static void absurd_sizes(void **state) {
    (void)state;
    static const struct {
        int64_t n_layer, d, ff, heads, kv, vocab, seq;
        const char *words;
    } cases[] = {
        {0, 64, 96, 4, 2, 100, 10, "layers is 0"},
        {10001, 64, 96, 4, 2, 100, 10, "layers is 10001"},
        {2, 2097152, 96, 4, 2, 100, 10, "width is 2097152"},
        {2, -64, 96, 4, 2, 100, 10, "hidden_size -64"},
        {2, 64, 0, 4, 2, 100, 10, "MLP width is 0"},
        {2, 64, 96, 0, 2, 100, 10, "num_attention_heads 0"},
        {2, 64, 96, -4, 2, 100, 10, "num_attention_heads -4"},
        {2, 64, 96, 5, 5, 100, 10, "hidden_size 64 is not a multiple of num_attention_heads 5"},
        {2, 64, 96, 4, 3, 100, 10, "4 attention heads cannot share 3"},
        {2, 64, 96, 4, 8, 100, 10, "key-value heads is 8"},
        {2, 64, 96, 4, 0, 100, 10, "key-value heads is 0"},
        {2, 64, 96, 64, 64, 100, 10, "head dimension is 1"},
        {2, 60, 96, 4, 2, 100, 10, "15 is odd"},
        {2, 64, 96, 4, 2, 0, 10, "vocabulary is 0"},
        {2, 64, 96, 4, 2, 1 << 25, 10, "vocabulary is 33554432"},
        {2, 64, 96, 4, 2, 100, 0, "positions is 0"},
        {2, 64, 96, 4, 2, 100, INT64_MAX, "positions is 9223372036854775807"},
        {INT64_MAX, 64, 96, 4, 2, 100, 10, "layers is"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; ++i) {
        char text[512];
        rq_config c;
        snprintf(text, sizeof text,
                 "{\"model_type\":\"llama\",\"num_hidden_layers\":%lld,\"hidden_size\":%lld,\"intermediate_size\":%lld,"
                 "\"num_attention_heads\":%lld,\"num_key_value_heads\":%lld,\"vocab_size\":%lld,"
                 "\"max_position_embeddings\":%lld}",
                 (long long)cases[i].n_layer, (long long)cases[i].d, (long long)cases[i].ff, (long long)cases[i].heads,
                 (long long)cases[i].kv, (long long)cases[i].vocab, (long long)cases[i].seq);
        assert_int_equal(parse(&c, text, NULL), RQ_ERR_INPUT);
        if (!strstr(rq_last_error(), cases[i].words)) fail_msg("%s: %s", text, rq_last_error());
    }
}

/* ---- with tensors ------------------------------------------------------------------------------------------------- */

#define SMALL                                                                                                          \
    "{\"model_type\":\"llama\",\"num_hidden_layers\":1,\"hidden_size\":8,\"intermediate_size\":6,"                     \
    "\"num_attention_heads\":2,\"num_key_value_heads\":1,\"vocab_size\":10,\"max_position_embeddings\":16"

static const struct {
    const char *name;
    int64_t rows, cols;
} small_parts[] = {
    {"model.embed_tokens.weight", 10, 8},
    {"model.norm.weight", 8, 0},
    {"lm_head.weight", 10, 8},
    {"model.layers.0.input_layernorm.weight", 8, 0},
    {"model.layers.0.post_attention_layernorm.weight", 8, 0},
    {"model.layers.0.self_attn.q_proj.weight", 8, 8},
    {"model.layers.0.self_attn.k_proj.weight", 4, 8},
    {"model.layers.0.self_attn.v_proj.weight", 4, 8},
    {"model.layers.0.self_attn.o_proj.weight", 8, 8},
    {"model.layers.0.mlp.gate_proj.weight", 6, 8},
    {"model.layers.0.mlp.up_proj.weight", 6, 8},
    {"model.layers.0.mlp.down_proj.weight", 8, 6},
};
#define N_PARTS ((int)(sizeof small_parts / sizeof *small_parts))

/* Write the small model with part `odd` changed by change(), config text beside it, and load. */
static rq_status load_small(const char *folder, const char *config, int odd, void (*change)(rq_out_tensor *t)) {
    static const uint8_t zeros[1024];
    rq_out_tensor out[N_PARTS];
    char *path = rq_path_join(folder, "model.safetensors");
    int n = 0;
    for (int i = 0; i < N_PARTS; ++i) {
        out[n] = (rq_out_tensor){.name = small_parts[i].name,
                                 .dtype = RQ_F32,
                                 .rank = small_parts[i].cols ? 2 : 1,
                                 .shape = {small_parts[i].rows, small_parts[i].cols},
                                 .fill = rq_fill_from_memory,
                                 .arg = (void *)(uintptr_t)zeros};
        if (i == odd) change(&out[n]);
        if (out[n].name) ++n;
    }
    assert_int_equal(rq_safetensors_write(path, out, n, NULL, 0), RQ_OK);
    free(path);
    write_text(folder, "config.json", config);
    rq_store *s;
    rq_config c;
    assert_int_equal(rq_store_open(&s, folder), RQ_OK);
    rq_status status = rq_config_load(&c, s);
    rq_store_close(s);
    return status;
}

static void drop(rq_out_tensor *t) { t->name = NULL; }
static void one_row_less(rq_out_tensor *t) { --t->shape[0]; }
static void one_column_more(rq_out_tensor *t) { ++t->shape[t->rank - 1]; }
static void as_integers(rq_out_tensor *t) { t->dtype = RQ_I32; }
static void as_packed(rq_out_tensor *t) {
    t->name = "model.layers.0.mlp.up_proj.weight_packed";
    t->dtype = RQ_I32;
    t->shape[1] = 1;
}
static void embedding_packed(rq_out_tensor *t) {
    t->name = "model.embed_tokens.weight_packed";
    t->dtype = RQ_I32;
}
static rq_status fill_ones(void *arg, void *dst, int64_t n_bytes) {
    (void)arg;
    memset(dst, 0x3f, (size_t)n_bytes);
    return RQ_OK;
}
static void as_zero_bias(rq_out_tensor *t) {
    t->name = "model.layers.0.self_attn.q_proj.bias";
    t->rank = 1;
    t->shape[0] = 8;
}
static void as_bias(rq_out_tensor *t) {
    as_zero_bias(t);
    t->fill = fill_ones;
}

static void tensors_against_config(void **state) {
    (void)state;
    char folder[256];
    new_folder(folder, sizeof folder);
    if (load_small(folder, SMALL "}", -1, NULL) != RQ_OK) fail_msg("%s", rq_last_error());
    for (int i = 0; i < N_PARTS; ++i) {
        assert_int_equal(load_small(folder, SMALL "}", i, drop), RQ_ERR_INPUT);
        assert_non_null(strstr(rq_last_error(), small_parts[i].name));
        assert_non_null(strstr(rq_last_error(), "missing"));
        assert_int_equal(load_small(folder, SMALL "}", i, one_row_less), RQ_ERR_INPUT);
        assert_non_null(strstr(rq_last_error(), small_parts[i].name));
        assert_int_equal(load_small(folder, SMALL "}", i, one_column_more), RQ_ERR_INPUT);
        assert_int_equal(load_small(folder, SMALL "}", i, as_integers), RQ_ERR_UNSUPPORTED);
        assert_non_null(strstr(rq_last_error(), small_parts[i].name));
    }
    assert_int_equal(load_small(folder, SMALL ",\"tie_word_embeddings\":true}", 2, drop), RQ_OK);
    assert_int_equal(load_small(folder, SMALL "}", 10, as_packed), RQ_OK); /* a packed matrix passes here */
    assert_int_equal(load_small(folder, SMALL "}", 0, embedding_packed), RQ_OK);
    assert_int_equal(load_small(folder, SMALL ",\"tie_word_embeddings\":true}", 2, as_bias), RQ_ERR_INPUT);
    assert_non_null(strstr(rq_last_error(), "no such bias"));
    assert_int_equal(load_small(folder, SMALL ",\"tie_word_embeddings\":true}", 2, as_zero_bias), RQ_OK);
    assert_int_equal(load_small(folder, SMALL ",\"attention_bias\":true}", -1, NULL), RQ_ERR_INPUT);
    assert_non_null(strstr(rq_last_error(), "q_proj.bias is missing"));
    write_text(folder, "generation_config.json", "{\"eos_token_id\":[3,4]}");
    rq_store *s;
    rq_config c;
    assert_int_equal(load_small(folder, SMALL ",\"eos_token_id\":4}", -1, NULL), RQ_OK);
    assert_int_equal(rq_store_open(&s, folder), RQ_OK);
    assert_int_equal(rq_config_load(&c, s), RQ_OK);
    assert_int_equal(c.n_eos, 2);
    rq_store_close(s);
    /* The single file finds the same config.json beside it; without one the sentence names the path. */
    char *path = rq_path_join(folder, "model.safetensors");
    assert_int_equal(rq_store_open(&s, path), RQ_OK);
    assert_int_equal(rq_config_load(&c, s), RQ_OK);
    char *config = rq_path_join(folder, "config.json");
    unlink(config);
    assert_int_equal(rq_config_load(&c, s), RQ_ERR_IO);
    assert_non_null(strstr(rq_last_error(), config));
    rq_store_close(s);
    free(config);
    free(path);
    remove_folder(folder, (const char *const[]){"model.safetensors", "generation_config.json"}, 2);
}

/* ---- GGUF --------------------------------------------------------------------------------------------------------- */

static void from_gguf(void **state) {
    (void)state;
    rq_store *s;
    rq_config c;
    assert_int_equal(rq_store_open(&s, DATA "tiny.gguf"), RQ_OK);
    if (rq_config_load(&c, s) != RQ_OK) fail_msg("%s", rq_last_error());
    assert_string_equal(c.arch, "llama");
    assert_int_equal(c.n_layer, 2);
    assert_int_equal(c.d_model, 32);
    assert_int_equal(c.d_ff, 64);
    assert_int_equal(c.n_head, 4);
    assert_int_equal(c.n_kv_head, 2);
    assert_int_equal(c.head_dim, 8);
    assert_int_equal(c.n_vocab, 24);
    assert_int_equal(c.max_seq, 64);
    assert_true(c.rms_eps == 1e-5f && c.rope_theta == 50000.0);
    assert_true(c.qkv_bias && !c.o_bias && !c.mlp_bias && !c.tied_head);
    assert_int_equal(c.bos_id, 1);
    assert_int_equal(c.n_eos, 1);
    assert_int_equal(c.eos_id[0], 2);
    char *text;
    assert_int_equal(rq_config_to_json(&c, &text), RQ_ERR_UNSUPPORTED); /* biases on q, k, v alone: no llama has that */
    rq_store_close(s);
}

typedef struct gguf_knobs {
    const char *arch, *scaling;
    uint32_t n_expert, heads, window;
    float factor;
    double divisor_factor; /* > 0: write rope_freqs.weight with these */
    int64_t divisor_context;
    float divisor_high;
} gguf_knobs;

static void key_u32(bytes *b, uint64_t *n, const char *arch, const char *key, uint32_t v) {
    char full[128];
    snprintf(full, sizeof full, "%s.%s", arch, key);
    put_str(b, full);
    put_u32(b, RQ_META_U32);
    put_u32(b, v);
    ++*n;
}

static void key_f32(bytes *b, uint64_t *n, const char *arch, const char *key, float v) {
    char full[128];
    snprintf(full, sizeof full, "%s.%s", arch, key);
    put_str(b, full);
    put_u32(b, RQ_META_F32);
    put_f32(b, v);
    ++*n;
}

/* One layer, width 128 in one head, so that the rope divisors have 64 entries. */
static bytes build_gguf(const gguf_knobs *k) {
    static const struct {
        const char *name;
        uint64_t ne[2];
    } part[] = {{"token_embd.weight", {128, 6}},      {"output_norm.weight", {128, 0}},
                {"blk.0.attn_norm.weight", {128, 0}}, {"blk.0.ffn_norm.weight", {128, 0}},
                {"blk.0.attn_q.weight", {128, 128}},  {"blk.0.attn_k.weight", {128, 128}},
                {"blk.0.attn_v.weight", {128, 128}},  {"blk.0.attn_output.weight", {128, 128}},
                {"blk.0.ffn_gate.weight", {128, 4}},  {"blk.0.ffn_up.weight", {128, 4}},
                {"blk.0.ffn_down.weight", {4, 128}},  {"rope_freqs.weight", {64, 0}}};
    bytes keys = {0}, infos = {0}, b = {0};
    uint64_t n_kv = 1, n_tensors = k->divisor_factor > 0 ? 12 : 11, offset = 0;
    put_str(&keys, "general.architecture");
    put_u32(&keys, RQ_META_STR);
    put_str(&keys, k->arch);
    key_u32(&keys, &n_kv, k->arch, "block_count", 1);
    key_u32(&keys, &n_kv, k->arch, "embedding_length", 128);
    key_u32(&keys, &n_kv, k->arch, "feed_forward_length", 4);
    key_u32(&keys, &n_kv, k->arch, "attention.head_count", k->heads);
    key_u32(&keys, &n_kv, k->arch, "context_length", 131072);
    key_f32(&keys, &n_kv, k->arch, "attention.layer_norm_rms_epsilon", 1e-5f);
    key_f32(&keys, &n_kv, k->arch, "rope.freq_base", 500000.0f);
    if (k->n_expert) key_u32(&keys, &n_kv, k->arch, "expert_count", k->n_expert);
    if (k->window) key_u32(&keys, &n_kv, k->arch, "attention.sliding_window", k->window);
    if (k->factor != 0) key_f32(&keys, &n_kv, k->arch, "rope.scaling.factor", k->factor);
    if (k->scaling) {
        char full[64];
        snprintf(full, sizeof full, "%s.rope.scaling.type", k->arch);
        put_str(&keys, full);
        put_u32(&keys, RQ_META_STR);
        put_str(&keys, k->scaling);
        ++n_kv;
    }
    for (uint64_t i = 0; i < n_tensors; ++i) {
        put_str(&infos, part[i].name);
        put_u32(&infos, part[i].ne[1] ? 2 : 1);
        put_u64(&infos, part[i].ne[0]);
        if (part[i].ne[1]) put_u64(&infos, part[i].ne[1]);
        put_u32(&infos, 0);
        put_u64(&infos, offset);
        offset += 4 * part[i].ne[0] * (part[i].ne[1] ? part[i].ne[1] : 1); /* all multiples of 32 */
    }
    put(&b, "GGUF\3\0\0\0", 8);
    put_u64(&b, n_tensors);
    put_u64(&b, n_kv);
    put(&b, keys.p, keys.n);
    put(&b, infos.p, infos.n);
    pad32(&b);
    put_zeros(&b, offset - (k->divisor_factor > 0 ? 256 : 0));
    for (int i = 0; i < 64 && k->divisor_factor > 0; ++i) { /* by wavelength, as the scaling is published */
        double wavelength = 2 * 3.14159265358979323846 * pow(500000.0, (double)i / 64.0);
        double context = (double)k->divisor_context, high = (double)k->divisor_high, divisor;
        if (wavelength < context / high) {
            divisor = 1;
        } else if (wavelength > context) {
            divisor = k->divisor_factor;
        } else {
            double smooth = (context / wavelength - 1) / (high - 1);
            divisor = 1 / ((1 - smooth) / k->divisor_factor + smooth);
        }
        put_f32(&b, (float)divisor);
    }
    free(keys.p);
    free(infos.p);
    return b;
}

static rq_status load_gguf(gguf_knobs k, rq_config *c) {
    if (!k.arch) k.arch = "llama";
    if (!k.heads) k.heads = 1;
    bytes b = build_gguf(&k);
    rq_store *s;
    if (open_bytes(&s, b.p, b.n) != RQ_OK) fail_msg("%s", rq_last_error());
    rq_status status = rq_config_load(c, s);
    if (k.divisor_factor > 0) assert_non_null(rq_store_find(s, "rope_freqs.weight"));
    close_bytes(s);
    free(b.p);
    return status;
}

static void gguf_variants(void **state) {
    (void)state;
    rq_config c;
    if (load_gguf((gguf_knobs){0}, &c) != RQ_OK) fail_msg("%s", rq_last_error());
    assert_true(c.tied_head);
    assert_int_equal(c.rope_scaling, RQ_ROPE_PLAIN);
    assert_int_equal(load_gguf((gguf_knobs){.arch = "qwen2"}, &c), RQ_OK);
    assert_string_equal(c.arch, "qwen2");
    assert_int_equal(load_gguf((gguf_knobs){.arch = "phi3"}, &c), RQ_ERR_UNSUPPORTED);
    assert_int_equal(load_gguf((gguf_knobs){.n_expert = 8}, &c), RQ_ERR_UNSUPPORTED);
    assert_int_equal(load_gguf((gguf_knobs){.window = 4096}, &c), RQ_ERR_UNSUPPORTED);
    assert_int_equal(load_gguf((gguf_knobs){.window = 131072}, &c), RQ_OK);
    assert_int_equal(load_gguf((gguf_knobs){.scaling = "yarn"}, &c), RQ_ERR_UNSUPPORTED);
    assert_int_equal(load_gguf((gguf_knobs){.scaling = "none"}, &c), RQ_OK);
    assert_int_equal(load_gguf((gguf_knobs){.scaling = "linear"}, &c), RQ_ERR_INPUT); /* no factor */
    assert_int_equal(load_gguf((gguf_knobs){.scaling = "linear", .factor = 4}, &c), RQ_OK);
    assert_int_equal(c.rope_scaling, RQ_ROPE_LINEAR);
    assert_true(c.rope_factor == 4.0);
    static const int64_t contexts[] = {8192, 4096, 32768};
    for (int i = 0; i < 3; ++i) {
        gguf_knobs k = {.divisor_factor = i ? 32 : 8, .divisor_context = contexts[i], .divisor_high = 4};
        if (load_gguf(k, &c) != RQ_OK) fail_msg("%s", rq_last_error());
        assert_int_equal(c.rope_scaling, RQ_ROPE_LLAMA3);
        assert_int_equal(c.rope_original_max_seq, contexts[i]);
        assert_true(c.rope_factor == k.divisor_factor);
    }
    gguf_knobs odd = {.divisor_factor = 8, .divisor_context = 8192, .divisor_high = 3};
    assert_int_equal(load_gguf(odd, &c), RQ_ERR_UNSUPPORTED);
    gguf_knobs ones = {.divisor_factor = 1, .divisor_context = 8192, .divisor_high = 4};
    assert_int_equal(load_gguf(ones, &c), RQ_OK);
    assert_int_equal(c.rope_scaling, RQ_ROPE_PLAIN);
    gguf_knobs both = {
        .divisor_factor = 8, .divisor_context = 8192, .divisor_high = 4, .scaling = "linear", .factor = 2};
    assert_int_equal(load_gguf(both, &c), RQ_ERR_UNSUPPORTED);
}

/* Written, read again: the same configuration. */
static void json_round_trip(void **state) {
    (void)state;
    static const char *const texts[] = {
        "{" LLAMA ",\"rms_norm_eps\":1e-5,\"rope_theta\":500000.0,\"bos_token_id\":1,\"eos_token_id\":[2,3],"
        "\"attention_bias\":true,\"head_dim\":32,\"rope_scaling\":{\"rope_type\":\"llama3\",\"factor\":32.0,"
        "\"low_freq_factor\":1.0,\"high_freq_factor\":4.0,\"original_max_position_embeddings\":8192}}",
        "{" QWEN2 ",\"tie_word_embeddings\":true,\"eos_token_id\":5,\"rope_theta\":1000000.0}",
        "{" MISTRAL ",\"sliding_window\":null,\"rope_scaling\":{\"type\":\"linear\",\"factor\":4.0}}"};
    for (int i = 0; i < 3; ++i) {
        char *text;
        rq_config c = accepted(texts[i], NULL), d;
        assert_int_equal(rq_config_to_json(&c, &text), RQ_OK);
        assert_non_null(strstr(text, "\"torch_dtype\": \"float32\""));
        memset(&d, 0, sizeof d);
        d = accepted(text, NULL);
        assert_string_equal(c.arch, d.arch);
        assert_true(c.n_layer == d.n_layer && c.d_model == d.d_model && c.d_ff == d.d_ff && c.n_head == d.n_head);
        assert_true(c.n_kv_head == d.n_kv_head && c.head_dim == d.head_dim && c.n_vocab == d.n_vocab);
        assert_true(c.max_seq == d.max_seq && c.rms_eps == d.rms_eps && c.rope_theta == d.rope_theta);
        assert_true(c.rope_scaling == d.rope_scaling && c.rope_factor == d.rope_factor);
        assert_true(c.rope_low_freq_factor == d.rope_low_freq_factor);
        assert_true(c.rope_high_freq_factor == d.rope_high_freq_factor);
        assert_true(c.rope_original_max_seq == d.rope_original_max_seq);
        assert_true(c.tied_head == d.tied_head && c.qkv_bias == d.qkv_bias && c.o_bias == d.o_bias);
        assert_true(c.mlp_bias == d.mlp_bias && c.bos_id == d.bos_id && c.n_eos == d.n_eos);
        assert_memory_equal(c.eos_id, d.eos_id, sizeof c.eos_id);
        free(text);
    }
    rq_config c = {.arch = "gpt2"};
    char *text;
    assert_int_equal(rq_config_to_json(&c, &text), RQ_ERR_ARG);
}

/* A real model, when the environment names one. */
static void smollm2(void **state) {
    (void)state;
    const char *path = getenv("RQ_SMOLLM2");
    if (!path) {
        print_message("skip: RQ_SMOLLM2 does not name a GGUF file\n");
        skip();
    }
    rq_store *s;
    rq_config c;
    if (rq_store_open(&s, path) != RQ_OK || rq_config_load(&c, s) != RQ_OK) fail_msg("%s", rq_last_error());
    assert_int_equal(c.n_layer, 30);
    assert_int_equal(c.d_model, 576);
    for (int64_t i = 0; i < rq_store_count(s); ++i) {
        assert_int_equal(rq_tensor_check_finite(rq_store_at(s, i)), RQ_OK);
    }
    rq_store_close(s);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(defaults),
        cmocka_unit_test(end_ids),
        cmocka_unit_test(rope_kinds),
        cmocka_unit_test(windows),
        cmocka_unit_test(refusals),
        cmocka_unit_test(absurd_sizes),
        cmocka_unit_test(tensors_against_config),
        cmocka_unit_test(from_gguf),
        cmocka_unit_test(gguf_variants),
        cmocka_unit_test(json_round_trip),
        cmocka_unit_test(smollm2),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
