"""The dashboards of what is made: jobs, records, models."""

from panel import RATE, Dashboard, Panel, quantiles

PIPELINE = Dashboard(
    "pipeline",
    "pipeline",
    "Jobs of all kinds: do they come, wait, run and end well?",
    (
        (
            "Queue",
            (
                Panel(
                    "Open jobs",
                    "Waiting and running. Each API counts them in the store.",
                    "short",
                    (("max by (kind) (textmill_jobs_open)", "{{kind}}"),),
                ),
                Panel(
                    "Running",
                    "Attempts that workers have in hand.",
                    "short",
                    (("sum by (kind) (textmill_jobs_running)", "{{kind}}"),),
                ),
                Panel(
                    "Age of the oldest open job",
                    "Grows while nobody takes it, and while it runs.",
                    "s",
                    (("max by (kind) (textmill_jobs_oldest_open_seconds)", "{{kind}}"),),
                ),
            ),
        ),
        (
            "Ends",
            (
                Panel(
                    "Jobs finished",
                    "In the last hour, by how they ended.",
                    "short",
                    (("sum by (kind, state) (increase(textmill_jobs_finished_total[1h]))", "{{kind}} {{state}}"),),
                ),
                Panel(
                    "Attempts",
                    "In the last hour. retry, lease_lost and lost_commit are work done twice.",
                    "short",
                    (("sum by (outcome) (increase(textmill_job_attempts_total[1h]))", "{{outcome}}"),),
                ),
                Panel(
                    "Length of attempts",
                    "Half of them, and 99 % of them, were shorter.",
                    "s",
                    quantiles("textmill_job_attempt_seconds", "kind"),
                ),
            ),
        ),
        (
            "Trouble",
            (
                Panel(
                    "Dead letters",
                    "Jobs and messages given up in the last hour. Should be none.",
                    "short",
                    (("sum(increase(textmill_dead_letters_total[1h])) or vector(0)", "all kinds"),),
                    "stat",
                    1,
                ),
                Panel(
                    "Wake-ups that failed",
                    "The broker takes no messages. Jobs are found in the store meanwhile.",
                    "short",
                    (("sum(increase(textmill_job_rings_failed_total[1h])) or vector(0)", "last hour"),),
                    "stat",
                    1,
                ),
                Panel(
                    "Put back",
                    "A store, broker, LLM or engine was down.",
                    "short",
                    (
                        (
                            'sum(increase(textmill_job_attempts_total{outcome="dependency_down"}[1h])) or vector(0)',
                            "last hour",
                        ),
                    ),
                    "stat",
                    1,
                ),
            ),
        ),
    ),
)

SYNTH = Dashboard(
    "synth",
    "synth quality and cost",
    "What becomes of the answers that the LLM is asked for, and what they cost.",
    (
        (
            "Quality",
            (
                Panel(
                    "Answers",
                    "In the last hour. requested = accepted + rejected + dead-lettered.",
                    "short",
                    (
                        ("sum by (outcome) (increase(textmill_synth_answers_total[1h]))", "{{outcome}}"),
                        ("sum(increase(textmill_synth_answers_requested_total[1h]))", "requested"),
                    ),
                ),
                Panel(
                    "Share rejected",
                    "Of the last hour. More than half is an alert.",
                    "percentunit",
                    (
                        (
                            '(sum(increase(textmill_synth_answers_total{outcome="rejected"}[1h])) or vector(0)) '
                            "/ sum(increase(textmill_synth_answers_total[1h]))",
                            "rejected",
                        ),
                    ),
                    limit=0.5,
                ),
                Panel(
                    "Reasons",
                    "Why answers of the last hour were rejected.",
                    "short",
                    (
                        (
                            'sum by (reason) (increase(textmill_synth_answers_total{outcome="rejected"}[1h])) '
                            'or label_replace(vector(0), "reason", "none", "", "")',
                            "{{reason}}",
                        ),
                    ),
                ),
            ),
        ),
        (
            "Rows",
            (
                Panel(
                    "Repair ladder",
                    "Responses that needed a rung, and those that it saved, in the last hour.",
                    "short",
                    (
                        (
                            "sum by (rung, outcome) (increase(textmill_synth_rungs_total[1h])) or vector(0)",
                            "{{rung}} {{outcome}}",
                        ),
                    ),
                ),
                Panel(
                    "Rows left out",
                    "Made and not taken into the dataset, by rule, in the last hour.",
                    "short",
                    (("sum by (rule) (increase(textmill_synth_rows_dropped_total[1h])) or vector(0)", "{{rule}}"),),
                ),
            ),
        ),
        (
            "Cost",
            (
                Panel(
                    "LLM calls",
                    "Tries per second by outcome; reused were in the ledger and cost nothing.",
                    "reqps",
                    ((f"sum by (outcome) (rate(textmill_synth_calls_total{RATE}))", "{{outcome}}"),),
                ),
                Panel(
                    "Tokens paid",
                    "In the last hour, by direction.",
                    "short",
                    (("sum by (direction) (increase(textmill_synth_tokens_total[1h]))", "{{direction}}"),),
                ),
                Panel(
                    "Tokens per accepted answer",
                    "The price of a record; rises when the checks reject more.",
                    "short",
                    (
                        (
                            "sum(increase(textmill_synth_tokens_total[1h])) "
                            '/ sum(increase(textmill_synth_answers_total{outcome="accepted"}[1h]))',
                            "tokens",
                        ),
                    ),
                ),
            ),
        ),
    ),
)

_TRAINS = ' and on (instance) (textmill_jobs_running{kind="train"} > 0)'
TRAINING = Dashboard(
    "training",
    "training",
    "The runs in hand. A trainer that trains nothing isn't shown.",
    (
        (
            "Learning",
            (
                Panel(
                    "Loss",
                    "Per supervised token. A jump that stays is a bad batch or too high a rate.",
                    "short",
                    ((f"textmill_train_loss_nats{_TRAINS}", "{{instance}}"),),
                    least=None,
                ),
                Panel(
                    "Loss on what isn't trained",
                    "eval: other documents. held out: other wordings of trained facts.",
                    "short",
                    (
                        (f"textmill_train_eval_loss_nats{_TRAINS}", "eval {{instance}}"),
                        (f"textmill_train_heldout_loss_nats{_TRAINS}", "held out {{instance}}"),
                    ),
                    least=None,
                ),
                Panel(
                    "KL to the base model",
                    "How far it has moved on general prompts: forgetting.",
                    "short",
                    ((f"textmill_train_kl_to_base_nats{_TRAINS}", "{{instance}}"),),
                    least=None,
                ),
            ),
        ),
        (
            "Steps",
            (
                Panel(
                    "Step",
                    "A flat line for long is a stalled run.",
                    "short",
                    ((f"textmill_train_step{_TRAINS}", "{{instance}}"),),
                ),
                Panel(
                    "Gradient norm",
                    "Before clipping.",
                    "short",
                    ((f"textmill_train_gradient_norm{_TRAINS}", "{{instance}}"),),
                ),
                Panel(
                    "Learning rate",
                    "Of the last step.",
                    "sci",
                    ((f"textmill_train_learning_rate{_TRAINS}", "{{instance}}"),),
                ),
            ),
        ),
        (
            "Machine",
            (
                Panel(
                    "Tokens per second",
                    "Padding not counted.",
                    "short",
                    ((f"textmill_train_tokens_per_second{_TRAINS}", "{{instance}}"),),
                ),
                Panel(
                    "Memory",
                    "Most held so far, on the GPU or by the process.",
                    "bytes",
                    ((f"textmill_train_memory_bytes{_TRAINS}", "{{instance}}"),),
                ),
                Panel(
                    "Checkpoints in the store",
                    "What a restart goes on from.",
                    "short",
                    (("sum by (instance) (textmill_train_checkpoints_total)", "{{instance}}"),),
                ),
                Panel(
                    "Suspects",
                    "Records that stand out by their loss.",
                    "short",
                    ((f"(textmill_train_suspects >= 0 or textmill_train_step * 0){_TRAINS}", "{{instance}}"),),
                    limit=1,
                ),
            ),
        ),
    ),
)
