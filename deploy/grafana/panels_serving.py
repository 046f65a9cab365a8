"""The dashboards of what is served: clients, engines, load tests, and the processes of all services."""

from panel import COMPLETIONS, EDGE, RATE, REQUESTS, TTFT, Dashboard, Panel, mean, p99, quantiles

_GOOD = f"{REQUESTS}{{{COMPLETIONS}}}"
SERVING = Dashboard(
    "serving",
    "serving",
    "What clients see at the gateway, and what the engines do behind it.",
    (
        (
            "Objectives",
            (
                Panel(
                    "Failed, last hour",
                    "Completions that ended with a 5xx; the objective is 0.5 % over 30 days.",
                    "percentunit",
                    (
                        (
                            f'(sum(increase({REQUESTS}{{{COMPLETIONS},status=~"5.."}}[1h])) or vector(0)) '
                            f"/ sum(increase({_GOOD}[1h]))",
                            "failed",
                        ),
                    ),
                    "stat",
                    0.005,
                ),
                Panel(
                    "First token late, last hour",
                    "Streams that waited longer than 2.5 s; the objective is 5 %.",
                    "percentunit",
                    (
                        (
                            f'1 - sum(increase({TTFT}_bucket{{job="textmill-gateway",le="2.5"}}[1h])) '
                            f"/ sum(increase({TTFT}_count{EDGE}[1h]))",
                            "late",
                        ),
                    ),
                    "stat",
                    0.05,
                ),
                Panel(
                    "Engines",
                    "1 while the model answers.",
                    "short",
                    (("min by (model) (textmill_engine_ready)", "{{model}}"),),
                    "stat",
                ),
            ),
        ),
        (
            "Clients",
            (
                Panel(
                    "Requests",
                    "By model and status; 499 left before the answer.",
                    "reqps",
                    ((f"sum by (model, status) (rate({_GOOD}{RATE}))", "{{model}} {{status}}"),),
                ),
                Panel(
                    "In flight",
                    "Waiting or being answered.",
                    "short",
                    ((f"sum by (model) (textmill_gateway_requests_in_flight{EDGE})", "{{model}}"),),
                ),
                Panel(
                    "Tokens",
                    "As the answers told.",
                    "short",
                    (
                        (
                            f"sum by (model, kind) (rate(textmill_gateway_tokens_total{EDGE}{RATE}))",
                            "{{model}} {{kind}}",
                        ),
                    ),
                ),
            ),
        ),
        (
            "Latency",
            (
                Panel(
                    "Time to first token",
                    "From the whole request to the first bytes.",
                    "s",
                    quantiles("textmill_gateway_time_to_first_token_seconds", where=EDGE),
                ),
                Panel(
                    "Between tokens",
                    "As they came at the gateway.",
                    "s",
                    quantiles("textmill_gateway_inter_token_seconds", where=EDGE),
                ),
                Panel("Whole answers", "", "s", quantiles("textmill_gateway_request_seconds", where=EDGE)),
            ),
        ),
        (
            "Trouble",
            (
                Panel(
                    "Broken streams and retries",
                    "Per second; retries are unseen by clients.",
                    "short",
                    (
                        (
                            f"sum by (model) (rate(textmill_gateway_broken_streams_total{EDGE}{RATE}))",
                            "{{model}} broken",
                        ),
                        (f"sum by (model) (rate(textmill_gateway_retries_total{EDGE}{RATE}))", "{{model}} retried"),
                    ),
                ),
                Panel(
                    "Starts of engines",
                    "After the first, in the last hour.",
                    "short",
                    (("sum(increase(textmill_engine_restarts_total[1h])) or vector(0)", "restarts"),),
                    limit=3,
                ),
                Panel(
                    "Refused",
                    "Not admitted by limits or full queues.",
                    "reqps",
                    (
                        (
                            f"sum by (reason) (rate(textmill_gateway_rejected_total{EDGE}{RATE})) or vector(0)",
                            "{{reason}}",
                        ),
                    ),
                ),
            ),
        ),
        (
            "vLLM",
            (
                Panel(
                    "Running and waiting",
                    "More than ten waiting is an alert.",
                    "short",
                    (
                        ("sum by (model_name) (vllm:num_requests_running)", "{{model_name}} running"),
                        ("sum by (model_name) (vllm:num_requests_waiting)", "{{model_name}} waiting"),
                    ),
                ),
                Panel(
                    "KV cache",
                    "Share in use; full means waiting and preemption.",
                    "percentunit",
                    (("max by (model_name) (vllm:kv_cache_usage_perc)", "{{model_name}}"),),
                    limit=0.95,
                ),
                Panel(
                    "Tokens per second",
                    "Prompts computed, and text generated.",
                    "short",
                    (
                        (f"sum by (model_name) (rate(vllm:prompt_tokens_total{RATE}))", "{{model_name}} prompt"),
                        (
                            f"sum by (model_name) (rate(vllm:generation_tokens_total{RATE}))",
                            "{{model_name}} generated",
                        ),
                    ),
                ),
                Panel(
                    "Prefix cache hits",
                    "Share of prompt tokens that needn't be computed.",
                    "percentunit",
                    (
                        (
                            f"sum by (model_name) (rate(vllm:prefix_cache_hits_total{RATE})) "
                            f"/ sum by (model_name) (rate(vllm:prefix_cache_queries_total{RATE}))",
                            "{{model_name}}",
                        ),
                    ),
                ),
            ),
        ),
    ),
)

LOADTESTS = Dashboard(
    "loadtests",
    "load tests",
    "A load test as the system feels it. Its own figures, from the client's side, are in its report.",
    (
        (
            "Load",
            (
                Panel(
                    "Load tests running",
                    "Vertical lines in all panels mark them.",
                    "short",
                    (('sum(textmill_jobs_running{kind="loadtest"})', "running"),),
                ),
                Panel(
                    "Requests under way",
                    "The concurrency that arrives.",
                    "short",
                    (
                        (f"sum(textmill_gateway_requests_in_flight{EDGE})", "gateway"),
                        ("sum(vllm:num_requests_running)", "in vLLM's batch"),
                    ),
                ),
                Panel(
                    "Requests per second",
                    "Answered, by status.",
                    "reqps",
                    ((f"sum by (status) (rate({_GOOD}{RATE}))", "{{status}}"),),
                ),
            ),
        ),
        (
            "Where the time goes",
            (
                Panel(
                    "Time to first token: gateway and vLLM",
                    "The difference is the gateway's, and the way there.",
                    "s",
                    (
                        (p99("textmill_gateway_time_to_first_token_seconds", EDGE), "gateway p99"),
                        (p99("vllm:time_to_first_token_seconds"), "vLLM p99"),
                    ),
                ),
                Panel(
                    "Between tokens: gateway and vLLM",
                    "",
                    "s",
                    (
                        (p99("textmill_gateway_inter_token_seconds", EDGE), "gateway p99"),
                        (p99("vllm:inter_token_latency_seconds"), "vLLM p99"),
                    ),
                ),
                Panel(
                    "Inside vLLM",
                    "Mean seconds a request waits, computes its prompt, and generates.",
                    "s",
                    tuple((mean(f"vllm:request_{part}_time_seconds"), part) for part in ("queue", "prefill", "decode")),
                ),
            ),
        ),
        (
            "What gives way",
            (
                Panel(
                    "CPU",
                    "Cores used by each process. The gateway has one.",
                    "short",
                    ((f'sum by (job) (rate(process_cpu_seconds_total{{job=~"textmill-.*"}}{RATE}))', "{{job}}"),),
                ),
                Panel(
                    "Tokens generated",
                    "Per second, all models: the engines' throughput.",
                    "short",
                    ((f"sum(rate(vllm:generation_tokens_total{RATE}))", "tokens"),),
                ),
                Panel(
                    "Preemptions",
                    "Requests thrown out of the batch for want of cache, per second.",
                    "short",
                    ((f"sum(rate(vllm:num_preemptions_total{RATE}))", "preempted"),),
                ),
            ),
        ),
    ),
)

_OURS = '{job=~"textmill-.*"}'
PLATFORM = Dashboard(
    "platform",
    "platform",
    "The processes, and their control APIs.",
    (
        (
            "Processes",
            (
                Panel(
                    "Up", "1 while Prometheus reaches it.", "short", ((f"min by (job) (up{_OURS})", "{{job}}"),), "stat"
                ),
                Panel(
                    "CPU",
                    "Cores in use.",
                    "short",
                    (
                        (
                            f"sum by (job, instance) (rate(process_cpu_seconds_total{_OURS}{RATE}))",
                            "{{job}} {{instance}}",
                        ),
                    ),
                ),
                Panel(
                    "Memory",
                    "Resident. Training processes and engines are children, and not in it.",
                    "bytes",
                    ((f"process_resident_memory_bytes{_OURS}", "{{job}} {{instance}}"),),
                ),
                Panel(
                    "Open files",
                    "Share of what the process may have.",
                    "percentunit",
                    ((f"process_open_fds{_OURS} / process_max_fds{_OURS}", "{{job}} {{instance}}"),),
                    limit=0.8,
                ),
            ),
        ),
        (
            "Control APIs",
            (
                Panel(
                    "Requests",
                    "By service and status.",
                    "reqps",
                    ((f"sum by (job, status) (rate(textmill_http_requests_total{RATE}))", "{{job}} {{status}}"),),
                ),
                Panel("Time to answer", "", "s", quantiles("textmill_http_request_seconds", "job")),
                Panel(
                    "Slowest routes",
                    "99 % of the answers were faster.",
                    "s",
                    (
                        (
                            "topk(5, histogram_quantile(0.99, sum by (route, le) "
                            f"(rate(textmill_http_request_seconds_bucket{RATE}))))",
                            "{{route}}",
                        ),
                    ),
                ),
            ),
        ),
        (
            "Watching",
            (
                Panel(
                    "Age of processes",
                    "A fall is a restart.",
                    "s",
                    ((f"time() - process_start_time_seconds{_OURS}", "{{job}} {{instance}}"),),
                ),
                Panel(
                    "Time of scrapes",
                    "Over ten seconds a target counts as down.",
                    "s",
                    ((f"scrape_duration_seconds{_OURS}", "{{job}} {{instance}}"),),
                    limit=10,
                ),
            ),
        ),
    ),
)
