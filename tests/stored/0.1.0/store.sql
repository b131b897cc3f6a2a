BEGIN TRANSACTION;
CREATE TABLE onnxserve_alembic_version (version_num VARCHAR(32) NOT NULL PRIMARY KEY);
INSERT INTO "onnxserve_alembic_version" VALUES('0014');
CREATE TABLE onnxserve_alerts (
	id INTEGER NOT NULL,
	fingerprint VARCHAR(255) NOT NULL,
	endpoint VARCHAR(63) NOT NULL,
	monitor VARCHAR(255) NOT NULL,
	state VARCHAR(31) NOT NULL,
	first_at DATETIME NOT NULL,
	last_at DATETIME NOT NULL,
	told_at DATETIME,
	count INTEGER NOT NULL,
	detail JSON NOT NULL,
	PRIMARY KEY (id)
);
INSERT INTO "onnxserve_alerts" VALUES(1,'flights/daily','flights','daily','firing','2026-11-04 01:00:00.000000','2026-11-04 01:00:00.000000',NULL,1,'{"order": "2026-11-03T00:00:00+00:00 000001", "weight": 20.0, "lines": ["flights, flight-delay version 1, 2026-11-03/2026-11-04: drift", "- distance, distribution, Wasserstein distance 197.9 SD (threshold 3.384 SD): mean 886.6 \u2192 2842, higher; drift since the window of 3 November 2026; Wasserstein distance 6.91 deviations, 0.101 \u00b1 0.034 in the reference''s own windows", "- distance, range, share out of range 49.94 SD (threshold 3.384 SD): out of range 0.1% \u2192 100.0%, more above; drift since the window of 3 November 2026; 100.0% of rows are outside of -24.1 to 1830 (above), 0.1% \u00b1 0.3% in the reference''s own windows"], "link": "", "next": "next: onnxserve retrain flights --monitor daily, or onnxserve silence flights --monitor daily --for 2h", "tags": [], "news": "firing", "number": 1, "since": "2026-11-04T01:00:00+00:00", "told_weight": 20.0, "is_told": false}');
INSERT INTO "onnxserve_alerts" VALUES(2,'flights/accuracy/failing','flights','accuracy','resolved','2026-11-04 02:00:00.000000','2026-11-04 02:00:00.000000',NULL,1,'{"order": "", "weight": 1.0, "lines": ["the labels can be read"], "link": "", "next": "", "tags": [], "news": "resolved", "number": 2, "since": "2026-11-04T02:00:00+00:00", "told_weight": 0.0, "is_told": false}');
INSERT INTO "onnxserve_alerts" VALUES(3,'flights/daily/said/a98e4218a186','flights','daily','said','2026-11-04 02:00:00.000000','2026-11-04 02:00:00.000000',NULL,1,'{"order": "", "weight": 1.0, "lines": ["flights: flight-delay version 3 is proposed: the version passed its gate without an evaluation (checked: parity, signature; not checked: evaluation: the policy skips it; not checked: robustness: the policy skips it; not checked: budget: the policy skips it); `onnxserve rollout flights --to 3` rolls it out"], "link": "", "next": "", "tags": [], "news": "said", "number": 1, "since": "2026-11-04T02:00:00+00:00", "told_weight": 1.0, "is_told": false}');
CREATE TABLE onnxserve_api_keys (
	name VARCHAR(63) NOT NULL,
	digest VARCHAR(64) NOT NULL,
	scopes JSON NOT NULL,
	endpoints JSON NOT NULL,
	actor VARCHAR(255) NOT NULL,
	created_at DATETIME NOT NULL,
	expires_at DATETIME,
	revoked_at DATETIME,
	limits JSON DEFAULT '[]' NOT NULL,
	PRIMARY KEY (name),
	UNIQUE (digest)
);
INSERT INTO "onnxserve_api_keys" VALUES('robot','634937c58ba284890e6c52c5b0d3142c78e67ebe525db7cee1cf1fb17300b163','["infer", "read"]','["flights"]','ada@laptop','2026-11-02 00:00:00.000000',NULL,NULL,'["10/second", "1000/hour"]');
INSERT INTO "onnxserve_api_keys" VALUES('dashboard','7775691d6a652c4611a79c562cc10f86bfa78ffdc4032bba7f6f844a824b1bc2','["read"]','[]','ada@laptop','2026-11-02 00:00:00.000000','2027-01-31 00:00:00.000000',NULL,'[]');
INSERT INTO "onnxserve_api_keys" VALUES('lost','cb4e4929c7ee15d2696bfb903a60e58841edcefeb51b8bbe0873c954206d6d14','["admin"]','[]','ada@laptop','2026-11-02 00:00:00.000000',NULL,'2026-11-02 00:00:00.000000','[]');
CREATE TABLE onnxserve_audit_events (
	id INTEGER NOT NULL,
	at DATETIME NOT NULL,
	actor VARCHAR(255) NOT NULL,
	action VARCHAR(63) NOT NULL,
	endpoint VARCHAR(63) NOT NULL,
	model VARCHAR(512) DEFAULT '' NOT NULL,
	version VARCHAR(255) DEFAULT '' NOT NULL,
	"before" TEXT DEFAULT '' NOT NULL,
	"after" TEXT DEFAULT '' NOT NULL,
	why TEXT DEFAULT '' NOT NULL,
	detail JSON NOT NULL,
	PRIMARY KEY (id)
);
INSERT INTO "onnxserve_audit_events" VALUES(1,'2026-11-02 00:00:00.000000','ada@laptop','gate','','flight-delay','1','','passed without an evaluation','checked: parity; not checked: signature: there is no version to compare it with; not checked: evaluation: the policy skips it; not checked: robustness: the policy skips it; not checked: budget: the policy skips it','{"report": "42a3f1ca577445fb87c798a2233f4b5d/gate_report.html", "run_id": "42a3f1ca577445fb87c798a2233f4b5d", "policy": "tag onnxserve.gate.policy of model flight-delay", "tagged": true, "files": "22f0c24f13fe9dddbfa85793b9585aaa7f0c55b94422e3c96fb7f44851446b47", "policy_digest": "4ef4228eda6a637c", "report_digest": "33d45a5726dd5d6c72e9d3d03a015811d75b39d1f972369081915ea4098a68d8", "checks": {"parity": {"state": "passed", "rows": 1894.0}, "signature": {"state": "skipped"}, "evaluation": {"state": "skipped"}, "robustness": {"state": "skipped"}, "budget": {"state": "skipped"}}}');
INSERT INTO "onnxserve_audit_events" VALUES(2,'2026-11-02 00:00:00.000000','ada@laptop','promote','','flight-delay','1','','version 1 in @champion','checked: parity; not checked: signature: there is no version to compare it with; not checked: evaluation: the policy skips it; not checked: robustness: the policy skips it; not checked: budget: the policy skips it','{"to": "@champion", "gate": "passed without an evaluation", "report": "42a3f1ca577445fb87c798a2233f4b5d/gate_report.html", "begun": "2026-11-02T00:00:00+00:00", "moved": {"place": "@champion", "before": ""}}');
INSERT INTO "onnxserve_audit_events" VALUES(3,'2026-11-02 00:00:00.000000','ada@laptop','create','flights','','','','champion models:/flight-delay@champion 100','','{"spec": "apiVersion: onnxserve/v1\nname: flights\nvariants:\n  champion:\n    model: models:/flight-delay@champion\nserver:\n  port: 20635\n  model_control_mode: explicit\nmonitors:\n  daily:\n    min_rows: 100\n    independent_rows: true\n    retrain:\n      project: /srv/onnxserve/project\n      env_manager: local\n  accuracy:\n    kind: performance\n    min_rows: 100\n    require:\n    - accuracy>=0.6\n  level:\n    kind: service_level\n    require:\n    - error_rate<=1%\n"}');
INSERT INTO "onnxserve_audit_events" VALUES(4,'2026-11-02 00:00:00.000000','ada@laptop','update','flights','','','','challenger models:/flight-delay/2 shadow','a comparison','{"spec": "apiVersion: onnxserve/v1\nname: flights\nvariants:\n  champion:\n    model: models:/flight-delay@champion\n  challenger:\n    model: models:/flight-delay/2\n    weight: 0\n    shadow: true\nserver:\n  port: 20635\n  model_control_mode: explicit\nmonitors:\n  daily:\n    min_rows: 100\n    independent_rows: true\n    retrain:\n      project: /srv/onnxserve/project\n      env_manager: local\n  accuracy:\n    kind: performance\n    min_rows: 100\n    require:\n    - accuracy>=0.6\n  level:\n    kind: service_level\n    require:\n    - error_rate<=1%\n"}');
INSERT INTO "onnxserve_audit_events" VALUES(5,'2026-11-02 00:00:00.000000','ada@laptop','key.create','','','','','key robot','','{"scopes": ["infer", "read"], "endpoints": ["flights"], "limits": ["10/second", "1000/hour"]}');
INSERT INTO "onnxserve_audit_events" VALUES(6,'2026-11-02 00:00:00.000000','ada@laptop','key.create','','','','','key dashboard','','{"scopes": ["read"], "endpoints": [], "limits": []}');
INSERT INTO "onnxserve_audit_events" VALUES(7,'2026-11-02 00:00:00.000000','ada@laptop','key.create','','','','','key lost','','{"scopes": ["admin"], "endpoints": [], "limits": []}');
INSERT INTO "onnxserve_audit_events" VALUES(8,'2026-11-02 00:00:00.000000','ada@laptop','key.revoke','','','','key lost','','it was in a log','{}');
INSERT INTO "onnxserve_audit_events" VALUES(9,'2026-11-04 01:00:00.000000','controller@laptop','retrain.start','flights','flight-delay','','version 1','full training','monitor daily, 2026-11-03/2026-11-04: drift: distance: mean 886.6 → 2842, higher; drift since the window of 3 November 2026; Wasserstein distance 6.91 deviations, 0.101 ± 0.034 in the reference''s own windows (p = 0.00249 compared with 400 samples of rows)','{"monitor": "daily", "window": "2026-11-03/2026-11-04", "verdict": "drift", "report": "run cceedb6047b84e7e867b4513451fc87d"}');
INSERT INTO "onnxserve_audit_events" VALUES(10,'2026-11-04 02:00:00.000000','ada@laptop','monitor.accept','flights','','','','','there are new routes','{"monitor": "daily", "baseline": "distance since 2026-11-03T00:00:00+00:00"}');
INSERT INTO "onnxserve_audit_events" VALUES(11,'2026-11-04 02:00:00.000000','ada@laptop','monitor.pause','flights','','','','','the gateway measures this','{"monitor": "level"}');
INSERT INTO "onnxserve_audit_events" VALUES(12,'2026-11-04 02:00:00.000000','ada@laptop','silence','flights','','','','','the labels are late','{"monitor": "accuracy", "until": "2026-11-11T02:00:00+00:00", "silence": 1}');
INSERT INTO "onnxserve_audit_events" VALUES(13,'2026-11-04 02:00:00.000000','controller@laptop','retrain.run','flights','flight-delay','','version 1','run c0222fec78e842a0a1bc59be90776b8a','retraining 1 trains on 480 labelled rows up to 2026-11-04','{"retraining": 1, "held_out_rows": 0, "window": "2026-11-03/2026-11-04", "attempt": 1}');
INSERT INTO "onnxserve_audit_events" VALUES(14,'2026-11-04 02:00:00.000000','controller@laptop','retrain.version','flights','flight-delay','3','version 1','version 3','run c0222fec78e842a0a1bc59be90776b8a of retraining 1 registered the version','{"retraining": 1}');
INSERT INTO "onnxserve_audit_events" VALUES(15,'2026-11-04 02:00:00.000000','controller@laptop','gate','','flight-delay','3','models:/flight-delay/1','passed without an evaluation','checked: parity, signature; not checked: evaluation: the policy skips it; not checked: robustness: the policy skips it; not checked: budget: the policy skips it','{"report": "d2d6d000c77a4523a0aeaa58b01b7e67/gate_report.html", "run_id": "d2d6d000c77a4523a0aeaa58b01b7e67", "policy": "tag onnxserve.gate.policy of model flight-delay", "tagged": true, "files": "d1d0bfa89a8e6d7d0ea5eed533892e6cb8ecc617c23549cde34243fc9ec561d2", "policy_digest": "4ef4228eda6a637c", "report_digest": "b04f3e1138e7deb68ae45ec749ed7622a9e1bbd13e21627326a87c83890afe0e", "checks": {"parity": {"state": "passed", "rows": 1894.0}, "signature": {"state": "passed", "changes": 0.0, "breaking": 0.0}, "evaluation": {"state": "skipped"}, "robustness": {"state": "skipped"}, "budget": {"state": "skipped"}}}');
INSERT INTO "onnxserve_audit_events" VALUES(16,'2026-11-04 02:00:00.000000','controller@laptop','retrain.end','flights','flight-delay','3','','proposed','the version passed its gate without an evaluation (checked: parity, signature; not checked: evaluation: the policy skips it; not checked: robustness: the policy skips it; not checked: budget: the policy skips it); `onnxserve rollout flights --to 3` rolls it out','{"retraining": 1, "state": "proposed", "run_id": "c0222fec78e842a0a1bc59be90776b8a"}');
INSERT INTO "onnxserve_audit_events" VALUES(17,'2026-11-26 22:13:12.348738','ada@laptop','rollout.start','flights','flight-delay','2','version 1','version 2 by 50 %, 100 %','it is new','{"steps": [50, 100], "every": 1.0, "abort_on": "error_rate>20%"}');
INSERT INTO "onnxserve_audit_events" VALUES(18,'2026-11-04 02:00:00.000000','ada@laptop','update','flights','','','variants.candidate.allow_pyfunc not set','candidate models:/flight-delay/2 0, variants.candidate.allow_pyfunc True','rollout to version 2','{"spec": "apiVersion: onnxserve/v1\nname: flights\nvariants:\n  champion:\n    model: models:/flight-delay@champion\n  challenger:\n    model: models:/flight-delay/2\n    weight: 0\n    shadow: true\n  candidate:\n    model: models:/flight-delay/2\n    weight: 0\n    allow_pyfunc: true\nserver:\n  port: 20635\n  model_control_mode: explicit\nmonitors:\n  daily:\n    min_rows: 100\n    independent_rows: true\n    retrain:\n      project: /srv/onnxserve/project\n      env_manager: local\n  accuracy:\n    kind: performance\n    min_rows: 100\n    require:\n    - accuracy>=0.6\n  level:\n    kind: service_level\n    require:\n    - error_rate<=1%\n"}');
INSERT INTO "onnxserve_audit_events" VALUES(19,'2026-11-04 02:00:00.000000','ada@laptop','rollout.step','flights','flight-delay','2','0 %','50 %','','{"rollout": 1, "state": "stepping"}');
INSERT INTO "onnxserve_audit_events" VALUES(20,'2026-11-04 02:00:00.000000','ada@laptop','traffic','flights','','','champion 100, candidate 0','champion 50, candidate 50','step 50 % of a rollout','{"spec": "apiVersion: onnxserve/v1\nname: flights\nvariants:\n  champion:\n    model: models:/flight-delay@champion\n    weight: 50\n  challenger:\n    model: models:/flight-delay/2\n    weight: 0\n    shadow: true\n  candidate:\n    model: models:/flight-delay/2\n    weight: 50\n    allow_pyfunc: true\nserver:\n  port: 20635\n  model_control_mode: explicit\nmonitors:\n  daily:\n    min_rows: 100\n    independent_rows: true\n    retrain:\n      project: /srv/onnxserve/project\n      env_manager: local\n  accuracy:\n    kind: performance\n    min_rows: 100\n    require:\n    - accuracy>=0.6\n  level:\n    kind: service_level\n    require:\n    - error_rate<=1%\n"}');
INSERT INTO "onnxserve_audit_events" VALUES(21,'2026-11-04 02:00:00.000000','ada@laptop','rollout.step','flights','flight-delay','2','50 %','100 %','','{"rollout": 1, "state": "stepping", "current": {"requests": 25.0, "errors": 0.0}, "candidate": {"requests": 17.0, "errors": 0.0}, "criteria": {"error_rate>20%": {"figures": "0.00% of 17 requests to version 2 failed, 0.00% of 25 to version 1", "log_evidence": -2.328, "log_evidence_needed": 3.689}}}');
INSERT INTO "onnxserve_audit_events" VALUES(22,'2026-11-04 02:00:00.000000','ada@laptop','traffic','flights','','','champion 50, candidate 50','champion 0, candidate 100','step 100 % of a rollout','{"spec": "apiVersion: onnxserve/v1\nname: flights\nvariants:\n  champion:\n    model: models:/flight-delay@champion\n    weight: 0\n  challenger:\n    model: models:/flight-delay/2\n    weight: 0\n    shadow: true\n  candidate:\n    model: models:/flight-delay/2\n    allow_pyfunc: true\nserver:\n  port: 20635\n  model_control_mode: explicit\nmonitors:\n  daily:\n    min_rows: 100\n    independent_rows: true\n    retrain:\n      project: /srv/onnxserve/project\n      env_manager: local\n  accuracy:\n    kind: performance\n    min_rows: 100\n    require:\n    - accuracy>=0.6\n  level:\n    kind: service_level\n    require:\n    - error_rate<=1%\n"}');
INSERT INTO "onnxserve_audit_events" VALUES(23,'2026-11-04 02:00:00.000000','ada@laptop','alias','flights','flight-delay','2','version 1 in champion','version 2 in champion','rollout to version 2 has passed its steps','{"stood_there": "1", "moved": {"place": "@champion", "before": "1"}}');
INSERT INTO "onnxserve_audit_events" VALUES(24,'2026-11-04 02:00:00.000000','ada@laptop','traffic','flights','','','champion 0, candidate 100','champion 100, candidate 0','rollout to version 2 has promoted it','{"spec": "apiVersion: onnxserve/v1\nname: flights\nvariants:\n  champion:\n    model: models:/flight-delay@champion\n  challenger:\n    model: models:/flight-delay/2\n    weight: 0\n    shadow: true\n  candidate:\n    model: models:/flight-delay/2\n    weight: 0\n    allow_pyfunc: true\nserver:\n  port: 20635\n  model_control_mode: explicit\nmonitors:\n  daily:\n    min_rows: 100\n    independent_rows: true\n    retrain:\n      project: /srv/onnxserve/project\n      env_manager: local\n  accuracy:\n    kind: performance\n    min_rows: 100\n    require:\n    - accuracy>=0.6\n  level:\n    kind: service_level\n    require:\n    - error_rate<=1%\n"}');
INSERT INTO "onnxserve_audit_events" VALUES(25,'2026-11-04 02:00:00.000000','ada@laptop','update','flights','','','candidate models:/flight-delay/2 0, variants.candidate.allow_pyfunc True','variants.candidate.allow_pyfunc not set','rollout to version 2 has promoted it','{"spec": "apiVersion: onnxserve/v1\nname: flights\nvariants:\n  champion:\n    model: models:/flight-delay@champion\n  challenger:\n    model: models:/flight-delay/2\n    weight: 0\n    shadow: true\nserver:\n  port: 20635\n  model_control_mode: explicit\nmonitors:\n  daily:\n    min_rows: 100\n    independent_rows: true\n    retrain:\n      project: /srv/onnxserve/project\n      env_manager: local\n  accuracy:\n    kind: performance\n    min_rows: 100\n    require:\n    - accuracy>=0.6\n  level:\n    kind: service_level\n    require:\n    - error_rate<=1%\n"}');
INSERT INTO "onnxserve_audit_events" VALUES(26,'2026-11-04 02:00:00.000000','ada@laptop','rollout.end','flights','flight-delay','2','version 1','version 2','version 2 is served instead of 1','{"rollout": 1, "state": "promoted", "current": {"requests": 4.0, "errors": 0.0}, "candidate": {"requests": 42.0, "errors": 0.0}, "criteria": {"error_rate>20%": {"figures": "0.00% of 42 requests to version 2 failed, 0.00% of 4 to version 1", "log_evidence": -3.859, "log_evidence_needed": 4.382}}, "moved": {"place": "", "before": "1"}}');
INSERT INTO "onnxserve_audit_events" VALUES(27,'2026-11-26 22:13:17.095142','ada@laptop','rollout.start','flights','flight-delay','1','version 2','version 1 by 50 %, 100 %','','{"steps": [50, 100], "every": 3600.0, "abort_on": "error_rate>20%,p99>50x,disagreement>90%"}');
INSERT INTO "onnxserve_audit_events" VALUES(28,'2026-11-04 02:00:00.000000','ada@laptop','update','flights','','','variants.candidate.allow_pyfunc not set','candidate models:/flight-delay/1 0, variants.candidate.allow_pyfunc True','rollout to version 1','{"spec": "apiVersion: onnxserve/v1\nname: flights\nvariants:\n  champion:\n    model: models:/flight-delay@champion\n  challenger:\n    model: models:/flight-delay/2\n    weight: 0\n    shadow: true\n  candidate:\n    model: models:/flight-delay/1\n    weight: 0\n    allow_pyfunc: true\nserver:\n  port: 20635\n  model_control_mode: explicit\nmonitors:\n  daily:\n    min_rows: 100\n    independent_rows: true\n    retrain:\n      project: /srv/onnxserve/project\n      env_manager: local\n  accuracy:\n    kind: performance\n    min_rows: 100\n    require:\n    - accuracy>=0.6\n  level:\n    kind: service_level\n    require:\n    - error_rate<=1%\n"}');
INSERT INTO "onnxserve_audit_events" VALUES(29,'2026-11-04 02:00:00.000000','ada@laptop','update','flights','','','variants.candidate-shadow.allow_pyfunc not set','candidate-shadow models:/flight-delay/1 shadow, variants.candidate-shadow.allow_pyfunc True','rollout to version 1','{"spec": "apiVersion: onnxserve/v1\nname: flights\nvariants:\n  champion:\n    model: models:/flight-delay@champion\n  challenger:\n    model: models:/flight-delay/2\n    weight: 0\n    shadow: true\n  candidate:\n    model: models:/flight-delay/1\n    weight: 0\n    allow_pyfunc: true\n  candidate-shadow:\n    model: models:/flight-delay/1\n    weight: 0\n    shadow: true\n    allow_pyfunc: true\nserver:\n  port: 20635\n  model_control_mode: explicit\nmonitors:\n  daily:\n    min_rows: 100\n    independent_rows: true\n    retrain:\n      project: /srv/onnxserve/project\n      env_manager: local\n  accuracy:\n    kind: performance\n    min_rows: 100\n    require:\n    - accuracy>=0.6\n  level:\n    kind: service_level\n    require:\n    - error_rate<=1%\n"}');
INSERT INTO "onnxserve_audit_events" VALUES(30,'2026-11-04 02:00:00.000000','ada@laptop','rollout.step','flights','flight-delay','1','0 %','50 %','','{"rollout": 2, "state": "stepping"}');
INSERT INTO "onnxserve_audit_events" VALUES(31,'2026-11-04 02:00:00.000000','ada@laptop','traffic','flights','','','champion 100, candidate 0','champion 50, candidate 50','step 50 % of a rollout','{"spec": "apiVersion: onnxserve/v1\nname: flights\nvariants:\n  champion:\n    model: models:/flight-delay@champion\n    weight: 50\n  challenger:\n    model: models:/flight-delay/2\n    weight: 0\n    shadow: true\n  candidate:\n    model: models:/flight-delay/1\n    weight: 50\n    allow_pyfunc: true\n  candidate-shadow:\n    model: models:/flight-delay/1\n    weight: 0\n    shadow: true\n    allow_pyfunc: true\nserver:\n  port: 20635\n  model_control_mode: explicit\nmonitors:\n  daily:\n    min_rows: 100\n    independent_rows: true\n    retrain:\n      project: /srv/onnxserve/project\n      env_manager: local\n  accuracy:\n    kind: performance\n    min_rows: 100\n    require:\n    - accuracy>=0.6\n  level:\n    kind: service_level\n    require:\n    - error_rate<=1%\n"}');
INSERT INTO "onnxserve_audit_events" VALUES(32,'2026-11-04 02:00:00.000000','ada@laptop','rollout.step','flights','flight-delay','1','stepping','paused','paused by ada@laptop: it is Friday','{"rollout": 2, "state": "paused", "current": {"requests": 42.0, "errors": 0.0}, "candidate": {"requests": 25.0, "errors": 0.0}, "shadow": {"same": 42.0, "different": 0.0}, "criteria": {"error_rate>20%": {"figures": "0.00% of 25 requests to version 1 failed, 0.00% of 42 to version 2", "log_evidence": -2.866, "log_evidence_needed": 4.787}, "p99>50x": {"figures": "0.00% of 25 requests to version 1 took longer than 500 ms, 0.00% of 42 to version 2", "log_evidence": 0.0, "log_evidence_needed": 4.787}, "disagreement>90%": {"figures": "version 1 answers 0.00% of 42 rows differently from the current version", "log_evidence": -10.469, "log_evidence_needed": 4.787}}}');
INSERT INTO "onnxserve_audit_events" VALUES(33,'2026-11-04 03:00:00.000000','ben','register','','flight-delay','3','','','','{"created": 1795731188696, "authors": ["ben"]}');
INSERT INTO "onnxserve_audit_events" VALUES(34,'2026-11-04 03:00:00.000000','ada@laptop','gate','','flight-delay','3','models:/flight-delay/2','passed without an evaluation','checked: parity, signature; not checked: evaluation: the policy skips it; not checked: robustness: the policy skips it; not checked: budget: the policy skips it','{"report": "7072c8978080430cac8d9487d6cd9671/gate_report.html", "run_id": "7072c8978080430cac8d9487d6cd9671", "policy": "tag onnxserve.gate.policy of model flight-delay", "tagged": true, "files": "d1d0bfa89a8e6d7d0ea5eed533892e6cb8ecc617c23549cde34243fc9ec561d2", "policy_digest": "aceb1c0968215bb0", "report_digest": "b0def34aa14f19901c403449415411740cd8f13f1a922d3f28bc4792adf29288", "checks": {"parity": {"state": "passed", "rows": 1894.0}, "signature": {"state": "passed", "changes": 0.0, "breaking": 0.0}, "evaluation": {"state": "skipped"}, "robustness": {"state": "skipped"}, "budget": {"state": "skipped"}}}');
INSERT INTO "onnxserve_audit_events" VALUES(35,'2026-11-04 03:00:00.000000','ben','request','','flight-delay','3','','@champion','it is better','{"subject": {"model": "flight-delay", "version": "3", "place": "@champion", "created": 1795731188696, "files": "d1d0bfa89a8e6d7d0ea5eed533892e6cb8ecc617c23549cde34243fc9ec561d2", "policy": "aceb1c0968215bb0"}, "authors": ["ben"]}');
INSERT INTO "onnxserve_audit_events" VALUES(36,'2026-11-04 04:00:00.000000','eva','approve','','flight-delay','3','','@champion','','{"report": "b0def34aa14f19901c403449415411740cd8f13f1a922d3f28bc4792adf29288", "verdict": "passed without an evaluation"}');
INSERT INTO "onnxserve_audit_events" VALUES(37,'2026-11-04 05:00:00.000000','leo','approve','','flight-delay','3','','@champion','','{"report": "b0def34aa14f19901c403449415411740cd8f13f1a922d3f28bc4792adf29288", "verdict": "passed without an evaluation", "complete": {"model": "flight-delay", "version": "3", "place": "@champion", "created": 1795731188696, "files": "d1d0bfa89a8e6d7d0ea5eed533892e6cb8ecc617c23549cde34243fc9ec561d2", "policy": "aceb1c0968215bb0"}}');
INSERT INTO "onnxserve_audit_events" VALUES(38,'2026-11-04 05:00:00.000000','ben','register','','flight-delay','4','','','','{"created": 1795731201270, "authors": ["ben"]}');
INSERT INTO "onnxserve_audit_events" VALUES(39,'2026-11-04 05:00:00.000000','ada@laptop','gate','','flight-delay','4','models:/flight-delay/2','passed without an evaluation','checked: parity, signature; not checked: evaluation: the policy skips it; not checked: robustness: the policy skips it; not checked: budget: the policy skips it','{"report": "9582eb5be22c4b9c9c04c8ddca5f1069/gate_report.html", "run_id": "9582eb5be22c4b9c9c04c8ddca5f1069", "policy": "tag onnxserve.gate.policy of model flight-delay", "tagged": true, "files": "29ad6aac2229f0c37ec9ef77b6802583161715f94a7754e8a73787bc00950a95", "policy_digest": "aceb1c0968215bb0", "report_digest": "37b0cbc6bf4b6d95a1820f4b4189412a469aba43c198fcbbd5e5d9ee56e33e0b", "checks": {"parity": {"state": "passed", "rows": 1894.0}, "signature": {"state": "passed", "changes": 0.0, "breaking": 0.0}, "evaluation": {"state": "skipped"}, "robustness": {"state": "skipped"}, "budget": {"state": "skipped"}}}');
INSERT INTO "onnxserve_audit_events" VALUES(40,'2026-11-04 05:00:00.000000','ben','request','','flight-delay','4','','@champion','it is better','{"subject": {"model": "flight-delay", "version": "4", "place": "@champion", "created": 1795731201270, "files": "29ad6aac2229f0c37ec9ef77b6802583161715f94a7754e8a73787bc00950a95", "policy": "aceb1c0968215bb0"}, "authors": ["ben"]}');
INSERT INTO "onnxserve_audit_events" VALUES(41,'2026-11-04 06:00:00.000000','eva','approve','','flight-delay','4','','@champion','','{"report": "37b0cbc6bf4b6d95a1820f4b4189412a469aba43c198fcbbd5e5d9ee56e33e0b", "verdict": "passed without an evaluation"}');
INSERT INTO "onnxserve_audit_events" VALUES(42,'2026-11-04 06:00:00.000000','ada@laptop','promote','','flight-delay','3','version 2 in @champion','version 3 in @champion','checked: parity, signature; not checked: evaluation: the policy skips it; not checked: robustness: the policy skips it; not checked: budget: the policy skips it','{"to": "@champion", "gate": "passed without an evaluation", "report": "7072c8978080430cac8d9487d6cd9671/gate_report.html", "begun": "2026-11-04T06:00:00+00:00", "moved": {"place": "@champion", "before": "2"}}');
INSERT INTO "onnxserve_audit_events" VALUES(43,'2026-11-04 06:00:00.000000','ada@laptop','promote','','flight-delay','2','','version 2 in Staging','the policy does not gate Staging','{"to": "Staging", "gate": "not asked", "report": "", "begun": "2026-11-04T06:00:00+00:00", "moved": {"place": "Staging", "before": ""}}');
INSERT INTO "onnxserve_audit_events" VALUES(44,'2026-11-04 06:00:00.000000','eva','alias','','flight-delay','2','','@champion','','{"moved": {"place": "@champion", "before": "", "files": "29ad6aac2229f0c37ec9ef77b6802583161715f94a7754e8a73787bc00950a95"}}');
INSERT INTO "onnxserve_audit_events" VALUES(45,'2026-11-04 06:00:00.000000','eva','alias','','flight-delay','3','','@champion','','{"moved": {"place": "@champion", "before": "", "files": "d1d0bfa89a8e6d7d0ea5eed533892e6cb8ecc617c23549cde34243fc9ec561d2"}}');
INSERT INTO "onnxserve_audit_events" VALUES(46,'2026-11-04 06:00:00.000000','eva','transition','','flight-delay','1','','Archived','','{"moved": {"place": "Archived", "before": "", "files": "22f0c24f13fe9dddbfa85793b9585aaa7f0c55b94422e3c96fb7f44851446b47"}}');
INSERT INTO "onnxserve_audit_events" VALUES(47,'2026-11-04 06:00:00.000000','ada@laptop','create','everything','','','','champion models:/flight-delay@champion 90, challenger models:/flight-delay/2 10, candidate models:/flight-delay/3 shadow','','{"spec": "apiVersion: onnxserve/v1\nname: everything\nvariants:\n  champion:\n    model: models:/flight-delay@champion\n    weight: 90\n    allow_pyfunc: true\n  challenger:\n    model: models:/flight-delay/2\n    weight: 10\n  candidate:\n    model: models:/flight-delay/3\n    weight: 0\n    shadow: true\nserver:\n  host: 0.0.0.0\n  port: 8080\n  api_keys: true\n  jwt_issuer: https://login.example\n  jwt_audience: flights\n  insecure: true\n  grpc_port: 8081\n  metrics_port: 9090\n  workers: 2\n  threads: 8\n  worker_class: gthread\n  certfile: flights-tls/tls.crt\n  keyfile: flights-tls/tls.key\n  ca_certs: flights-tls/ca.crt\n  device: tensorrt\n  device_ids:\n  - 0\n  - 1\n  io_binding: true\n  provider_options:\n    gpu_mem_limit: 2147483648\n    arena_extend_strategy: kSameAsRequested\n    cudnn_conv_algo_search: HEURISTIC\n    use_tf32: false\n    enable_cuda_graph: true\n    trt_fp16_enable: true\n    trt_engine_cache_path: /var/cache/tensorrt\n  intra_op_num_threads: 2\n  max_worker_memory_bytes: 1073741824\n  max_body_bytes: 1048576\n  max_text_characters: 50000\n  request_timeout_seconds: 30\n  graceful_timeout_seconds: 20\n  model_control_mode: explicit\n  allowed_hosts:\n  - flights.svc\n  - models.example\n  max_batch_size: 64\n  preferred_batch_size:\n  - 8\n  - 32\n  max_queue_delay_microseconds: 1000\n  max_queue_size: 256\n  default_timeout_microseconds: 500000\n  max_concurrent_requests: 16\n  rate_limit: 100/minute\n  rate_limit_header: x-customer\n  response_cache_bytes: 4194304\n  explain_max_rows: 10\n  max_spool_bytes: 67108864\n  response_cache_seconds: 60\ncontainer:\n  image: registry.example/onnxserve:gpu\n  cpus: 1.5\n  memory_bytes: 2147483648\n  environment:\n    ONNXSERVE_LOG_LEVEL: debug\n  secrets:\n    AWS_SECRET_ACCESS_KEY: flights/secret\n  secret_files:\n    GOOGLE_APPLICATION_CREDENTIALS: flights/google.json\n  restart: on-failure\n  pids: 256\n  network: models\ncapture:\n  fraction: 0.5\n  max_rows_per_request: 500\n  drop:\n  - output.probabilities\n  mask:\n  - carrier\n  keys:\n  - booking\n  retention: 400d\nmonitors:\n  inputs:\n    schedule: 15 6 * * *\n    time_zone: Europe/Berlin\n    grace: 10m\n    reference: rolling:7d\n    min_rows: 300\n    false_alarm_rate: 0.02\n    season: 7d\n    columns:\n    - distance\n    - hour\n    segment_by:\n    - carrier\n    consecutive: 2\n    alert:\n    - oncall\n  answers:\n    kind: prediction_drift\n    every: 1h\n    reference: window:2026-10-01/2026-10-08\n    independent_rows: true\n  quality:\n    kind: data_quality\n    reference: dataset:s3://flights/reference.parquet\n    require:\n    - missing(distance)<=0.1\n  labels:\n    kind: performance\n    require:\n    - accuracy>=0.8\n    - log_loss<=0.6\n    labels_within: 2d\n    labels: reported\n    estimate: decides\n    retrain:\n      project: https://git.example/flights\n      entry_point: retrain\n      mode: incremental\n      sample:\n        recent: 30d\n        fraction: 0.5\n        stratify: hour\n        weight: 14d\n      parameters:\n        depth: 3.0\n        loss: log\n      env_manager: uv\n      schedule: 0 3 * * 1\n      cooldown: 2d\n      max_runs: 4\n      timeout: 2h\n      then: rollout\n      steps: 5,50,100\n      step_every: 10m\n      min_requests: 500\n  shadow:\n    kind: shadow\n    require:\n    - disagreement(candidate)<=0.05\n  level:\n    kind: service_level\n    every: 1h\n    require:\n    - p99<=0.2\n    - error_rate<=1%\nalarms:\n  false_per_year: 4.0\nsticky:\n  header: x-user-id\nkubernetes:\n  replicas: 2\n  max_replicas: 6\n  target_cpu_percent: 60\n  requests_per_second: 200.0\n  prometheus_url: http://prometheus.example:9090\n  gpus: 2\n  host: flights.example\n  ingress_class: nginx\n  tls_secret: flights-tls\n  allowed_namespaces:\n  - web\n  service_monitor: true\n  service_monitor_key: flights/metrics\n  service_account: flights\n  image_pull_secrets:\n  - registry\n  node_selector:\n  - pool=gpu\n  tolerations:\n  - dedicated=ml:NoSchedule\n  force_conflicts: true\nrequire: gate=passed\n", "unapproved": [{"model_uri": "models:/flight-delay/2", "model": "flight-delay", "version": "2", "places": ["@champion"], "share": 10.0, "since": "2026-11-04T06:00:00+00:00", "until": "2026-11-04T07:00:00+00:00"}]}');
CREATE TABLE onnxserve_endpoints (
	name VARCHAR(63) NOT NULL,
	target VARCHAR(255) NOT NULL,
	spec TEXT NOT NULL,
	created_at DATETIME NOT NULL,
	updated_at DATETIME NOT NULL,
	unapproved JSON DEFAULT '[]' NOT NULL,
	PRIMARY KEY (name)
);
INSERT INTO "onnxserve_endpoints" VALUES('flights','onnxserve','apiVersion: onnxserve/v1
name: flights
variants:
  champion:
    model: models:/flight-delay@champion
    weight: 50
  challenger:
    model: models:/flight-delay/2
    weight: 0
    shadow: true
  candidate:
    model: models:/flight-delay/1
    weight: 50
    allow_pyfunc: true
  candidate-shadow:
    model: models:/flight-delay/1
    weight: 0
    shadow: true
    allow_pyfunc: true
server:
  port: 20635
  model_control_mode: explicit
monitors:
  daily:
    min_rows: 100
    independent_rows: true
    retrain:
      project: /srv/onnxserve/project
      env_manager: local
  accuracy:
    kind: performance
    min_rows: 100
    require:
    - accuracy>=0.6
  level:
    kind: service_level
    require:
    - error_rate<=1%
','2026-11-02 00:00:00.000000','2026-11-04 02:00:00.000000','[]');
INSERT INTO "onnxserve_endpoints" VALUES('everything','onnxserve:/kubernetes/models','apiVersion: onnxserve/v1
name: everything
variants:
  champion:
    model: models:/flight-delay@champion
    weight: 90
    allow_pyfunc: true
  challenger:
    model: models:/flight-delay/2
    weight: 10
  candidate:
    model: models:/flight-delay/3
    weight: 0
    shadow: true
server:
  host: 0.0.0.0
  port: 8080
  api_keys: true
  jwt_issuer: https://login.example
  jwt_audience: flights
  insecure: true
  grpc_port: 8081
  metrics_port: 9090
  workers: 2
  threads: 8
  worker_class: gthread
  certfile: flights-tls/tls.crt
  keyfile: flights-tls/tls.key
  ca_certs: flights-tls/ca.crt
  device: tensorrt
  device_ids:
  - 0
  - 1
  io_binding: true
  provider_options:
    gpu_mem_limit: 2147483648
    arena_extend_strategy: kSameAsRequested
    cudnn_conv_algo_search: HEURISTIC
    use_tf32: false
    enable_cuda_graph: true
    trt_fp16_enable: true
    trt_engine_cache_path: /var/cache/tensorrt
  intra_op_num_threads: 2
  max_worker_memory_bytes: 1073741824
  max_body_bytes: 1048576
  max_text_characters: 50000
  request_timeout_seconds: 30
  graceful_timeout_seconds: 20
  model_control_mode: explicit
  allowed_hosts:
  - flights.svc
  - models.example
  max_batch_size: 64
  preferred_batch_size:
  - 8
  - 32
  max_queue_delay_microseconds: 1000
  max_queue_size: 256
  default_timeout_microseconds: 500000
  max_concurrent_requests: 16
  rate_limit: 100/minute
  rate_limit_header: x-customer
  response_cache_bytes: 4194304
  explain_max_rows: 10
  max_spool_bytes: 67108864
  response_cache_seconds: 60
container:
  image: registry.example/onnxserve:gpu
  cpus: 1.5
  memory_bytes: 2147483648
  environment:
    ONNXSERVE_LOG_LEVEL: debug
  secrets:
    AWS_SECRET_ACCESS_KEY: flights/secret
  secret_files:
    GOOGLE_APPLICATION_CREDENTIALS: flights/google.json
  restart: on-failure
  pids: 256
  network: models
capture:
  fraction: 0.5
  max_rows_per_request: 500
  drop:
  - output.probabilities
  mask:
  - carrier
  keys:
  - booking
  retention: 400d
monitors:
  inputs:
    schedule: 15 6 * * *
    time_zone: Europe/Berlin
    grace: 10m
    reference: rolling:7d
    min_rows: 300
    false_alarm_rate: 0.02
    season: 7d
    columns:
    - distance
    - hour
    segment_by:
    - carrier
    consecutive: 2
    alert:
    - oncall
  answers:
    kind: prediction_drift
    every: 1h
    reference: window:2026-10-01/2026-10-08
    independent_rows: true
  quality:
    kind: data_quality
    reference: dataset:s3://flights/reference.parquet
    require:
    - missing(distance)<=0.1
  labels:
    kind: performance
    require:
    - accuracy>=0.8
    - log_loss<=0.6
    labels_within: 2d
    labels: reported
    estimate: decides
    retrain:
      project: https://git.example/flights
      entry_point: retrain
      mode: incremental
      sample:
        recent: 30d
        fraction: 0.5
        stratify: hour
        weight: 14d
      parameters:
        depth: 3.0
        loss: log
      env_manager: uv
      schedule: 0 3 * * 1
      cooldown: 2d
      max_runs: 4
      timeout: 2h
      then: rollout
      steps: 5,50,100
      step_every: 10m
      min_requests: 500
  shadow:
    kind: shadow
    require:
    - disagreement(candidate)<=0.05
  level:
    kind: service_level
    every: 1h
    require:
    - p99<=0.2
    - error_rate<=1%
alarms:
  false_per_year: 4.0
sticky:
  header: x-user-id
kubernetes:
  replicas: 2
  max_replicas: 6
  target_cpu_percent: 60
  requests_per_second: 200.0
  prometheus_url: http://prometheus.example:9090
  gpus: 2
  host: flights.example
  ingress_class: nginx
  tls_secret: flights-tls
  allowed_namespaces:
  - web
  service_monitor: true
  service_monitor_key: flights/metrics
  service_account: flights
  image_pull_secrets:
  - registry
  node_selector:
  - pool=gpu
  tolerations:
  - dedicated=ml:NoSchedule
  force_conflicts: true
require: gate=passed
','2026-11-04 06:00:00.000000','2026-11-04 06:00:00.000000','[{"model_uri": "models:/flight-delay/2", "model": "flight-delay", "version": "2", "places": ["@champion"], "share": 10.0, "since": "2026-11-04T06:00:00+00:00", "until": "2026-11-04T07:00:00+00:00"}]');
CREATE TABLE onnxserve_leases (
	name VARCHAR(255) NOT NULL,
	holder VARCHAR(255) NOT NULL,
	token BIGINT NOT NULL,
	renewals BIGINT NOT NULL,
	seconds FLOAT NOT NULL,
	expires_at DATETIME NOT NULL,
	PRIMARY KEY (name)
);
CREATE TABLE onnxserve_monitor_windows (
	id INTEGER NOT NULL,
	endpoint VARCHAR(63) NOT NULL,
	monitor VARCHAR(255) NOT NULL,
	window_start DATETIME NOT NULL,
	window_end DATETIME NOT NULL,
	revision INTEGER NOT NULL,
	by_hand BOOLEAN DEFAULT 0 NOT NULL,
	state VARCHAR(31) NOT NULL,
	verdict VARCHAR(31) NOT NULL,
	reason TEXT NOT NULL,
	rows BIGINT NOT NULL,
	log_rows BIGINT NOT NULL,
	log_digest VARCHAR(64) NOT NULL,
	attempts INTEGER NOT NULL,
	not_before DATETIME,
	run_id VARCHAR(63) NOT NULL,
	run_url TEXT NOT NULL,
	figures JSON NOT NULL,
	evidence JSON DEFAULT '{}' NOT NULL,
	created_at DATETIME NOT NULL,
	updated_at DATETIME NOT NULL,
	PRIMARY KEY (id),
	CONSTRAINT ux_onnxserve_monitor_windows UNIQUE (endpoint, monitor, window_start, revision)
);
INSERT INTO "onnxserve_monitor_windows" VALUES(1,'flights','daily','2026-11-02 00:00:00.000000','2026-11-03 00:00:00.000000',1,0,'judged','no drift','no column differs from the reference more than its own windows do (p = 0.204 compared with 400 samples of rows); the clock of agent vm-f20ec0031c16 is an hour or more ahead: its rows are not waited for',240,240,'35827dbb0e8d854ad56b652a3e5aab74',0,NULL,'bb94e9afa07249ca93ae1cea0a292593','','{"rows": 240.0, "reference_rows": 600.0, "is_drift": 0.0, "p_value": 0.20448877805486285, "statistic": 2.6084916381882985, "threshold": 3.5677913593670136, "blocks": 400.0, "independent_blocks": 400.0, "compared_rows": 240.0, "false_alarm_rate": 0.05, "share_of_drifted_columns": 0.0, "drift_score/distance": 2.6084916381882985, "drift_distance/distance": 0.190955529864474, "missing/distance": 0.0, "reference_missing/distance": 0.0016666666666666668, "drift_score/prediction": 1.8462899658138185, "drift_distance/prediction": 0.06105182775971336, "missing/prediction": 0.0, "reference_missing/prediction": 0.0, "drift_score/hour": 1.7270456351315546, "drift_distance/hour": 0.14506749765603782, "missing/hour": 0.0, "reference_missing/hour": 0.0, "drift_score/output.probabilities.1": 1.609762138713608, "drift_distance/output.probabilities.1": 0.1341630332340289, "missing/output.probabilities.1": 0.0, "reference_missing/output.probabilities.1": 0.0, "drift_score/output.probabilities.0": 1.609762081953185, "drift_distance/output.probabilities.0": 0.13416303049080258, "missing/output.probabilities.0": 0.0, "reference_missing/output.probabilities.0": 0.0, "drift_score/relations between columns": 0.7761620416117864, "drift_distance/relations between columns": 0.06280563404103141, "drift_score/carrier": 0.0, "drift_distance/carrier": 0.024875778829525963, "missing/carrier": 0.0, "reference_missing/carrier": 0.0}','{"basis": "12fba97da6e7e31c2f44d22d66d579c5", "levels": {"relations between columns/_relations.0": 0.25997505419671757, "relations between columns/_relations.1": -0.3090077641105032, "relations between columns/_relations.2": 0.4932013672545297, "relations between columns/_relations.3": -0.17479749611073944, "relations between columns/_relations.4": 0.3584152230804895, "relations between columns/_relations.5": -0.8029575180579072, "relations between columns/_relations.6": -0.5066826280837715, "relations between columns/_relations.7": -0.8477828101730763, "carrier/missing": 0.0, "carrier/frequent": 0.375, "distance/missing": 0.0, "distance/level": 939.9712652241327, "distance/spread": 5.711401287317193, "hour/missing": 0.0, "hour/level": 11.141666666666667, "hour/spread": 1.9574753300531684, "output.probabilities.0/missing": 0.0, "output.probabilities.0/level": 0.5108419546221986, "output.probabilities.0/spread": -0.967496231687433, "output.probabilities.1/missing": 0.0, "output.probabilities.1/level": 0.48915804786717193, "output.probabilities.1/spread": -0.9674962263588975, "prediction/missing": 0.0, "prediction/frequent": 0.5}, "alarms": [], "accepted": [], "shifts": {}}','2026-11-04 01:00:00.000000','2026-11-04 01:00:00.000000');
INSERT INTO "onnxserve_monitor_windows" VALUES(2,'flights','daily','2026-11-03 00:00:00.000000','2026-11-04 00:00:00.000000',1,0,'judged','drift','distance: mean 886.6 → 2842, higher; drift since the window of 3 November 2026; Wasserstein distance 6.91 deviations, 0.101 ± 0.034 in the reference''s own windows (p = 0.00249 compared with 400 samples of rows); the clock of agent vm-f20ec0031c16 is an hour or more ahead: its rows are not waited for',240,240,'4c9d7057c3ba5578952d3bb31d29d6dc',0,NULL,'cceedb6047b84e7e867b4513451fc87d','','{"rows": 240.0, "reference_rows": 600.0, "is_drift": 1.0, "p_value": 0.0024937655860349127, "statistic": 197.9411736697396, "threshold": 3.383765565261245, "blocks": 400.0, "independent_blocks": 400.0, "compared_rows": 240.0, "false_alarm_rate": 0.05, "share_of_drifted_columns": 0.16666666666666666, "drift_score/distance": 197.9411736697396, "drift_distance/distance": 6.910374033934819, "missing/distance": 0.0, "reference_missing/distance": 0.0016666666666666668, "drift_score/relations between columns": 13.283435481253525, "drift_distance/relations between columns": 0.5469822027999883, "drift_score/hour": 1.5007145583327832, "drift_distance/hour": 0.13666279342675947, "missing/hour": 0.0, "reference_missing/hour": 0.0, "drift_score/output.probabilities.0": 1.4046875, "drift_distance/output.probabilities.0": 0.03536365864295537, "missing/output.probabilities.0": 0.0, "reference_missing/output.probabilities.0": 0.0, "drift_score/output.probabilities.1": 1.4046875, "drift_distance/output.probabilities.1": 0.03536366225964667, "missing/output.probabilities.1": 0.0, "reference_missing/output.probabilities.1": 0.0, "drift_score/carrier": 1.2084361677915316, "drift_distance/carrier": 0.06663265842352796, "missing/carrier": 0.0, "reference_missing/carrier": 0.0, "drift_score/prediction": 0.0, "drift_distance/prediction": 0.002862025604794784, "missing/prediction": 0.0, "reference_missing/prediction": 0.0}','{"basis": "12fba97da6e7e31c2f44d22d66d579c5", "levels": {"relations between columns/_relations.0": 0.2570989873453116, "relations between columns/_relations.1": -0.7397899333759875, "relations between columns/_relations.2": 0.42635501121911656, "relations between columns/_relations.3": -0.22296219627673822, "relations between columns/_relations.4": 0.33749206620291256, "relations between columns/_relations.5": -1.6598468261179102, "relations between columns/_relations.6": -0.6129001461555692, "relations between columns/_relations.7": -1.0609538410316386, "carrier/missing": 0.0, "carrier/frequent": 0.30416666666666664, "distance/missing": 0.0, "distance/level": 2841.941227364833, "distance/spread": 5.720082465591601, "hour/missing": 0.0, "hour/level": 11.1875, "hour/spread": 1.947631777733568, "output.probabilities.0/missing": 0.0, "output.probabilities.0/level": 0.5705705418822422, "output.probabilities.0/spread": -0.9817200766686344, "output.probabilities.1/missing": 0.0, "output.probabilities.1/level": 0.4294294585979063, "output.probabilities.1/spread": -0.9817200810269954, "prediction/missing": 0.0, "prediction/frequent": 0.575}, "alarms": ["distance"], "accepted": [], "shifts": {}}','2026-11-04 01:00:00.000000','2026-11-04 01:00:00.000000');
INSERT INTO "onnxserve_monitor_windows" VALUES(3,'flights','accuracy','2026-11-02 00:00:00.000000','2026-11-03 00:00:00.000000',1,0,'judged','kept','accuracy: 0.9333 on 240 rows (worth 98 independent rows), 0.8658 to 0.9681 (Wilson, confidence 0.95); required is accuracy>=0.6; the clock of agent vm-f20ec0031c16 is an hour or more ahead: its rows are not waited for',240,240,'c7389dfd4b998083f3c2a61b9e2b26dd',0,NULL,'26fe74a5c2a54fb3ba86e7354978a1b5','','{"rows": 240.0, "labelled_rows": 240.0, "labelled_share": 1.0, "accuracy": 0.9333333333333333, "accuracy_low": 0.8658291593909828, "accuracy_high": 0.968125054182249, "f1": 0.9316239316239316, "f1_low": 0.8694678780012979, "f1_high": 0.9772853535353536, "precision": 0.9083333333333333, "precision_low": 0.8095517078387214, "precision_high": 0.9585051374601544, "recall": 0.956140350877193, "recall_low": 0.8856657084170044, "recall_high": 0.9839616927779583, "roc_auc": 0.9860763018657756, "roc_auc_low": 0.9685289389282121, "roc_auc_high": 0.9939013647729886, "log_loss": 0.20746715629209056, "log_loss_low": 0.17250229170911097, "log_loss_high": 0.25335714792422864, "brier": 0.05666854371185619, "brier_low": 0.04072782898427297, "brier_high": 0.07290134146549734}','{"basis": "", "levels": {}, "alarms": [], "accepted": [], "shifts": {}}','2026-11-04 01:00:00.000000','2026-11-04 01:00:00.000000');
INSERT INTO "onnxserve_monitor_windows" VALUES(4,'flights','accuracy','2026-11-03 00:00:00.000000','2026-11-04 00:00:00.000000',1,0,'judged','kept','accuracy: 0.9125 on 240 rows (worth 190 independent rows), 0.8638 to 0.9449 (Wilson, confidence 0.95); required is accuracy>=0.6; the clock of agent vm-f20ec0031c16 is an hour or more ahead: its rows are not waited for',240,240,'657c4e910f6828a19272a58d821f457b',0,NULL,'fd6ee06c495342958595d154f29acb15','','{"rows": 240.0, "labelled_rows": 240.0, "labelled_share": 1.0, "accuracy": 0.9125, "accuracy_low": 0.8637633256890214, "accuracy_high": 0.9449137443938482, "f1": 0.9032258064516129, "f1_low": 0.8487572186670829, "f1_high": 0.9450972104818259, "precision": 0.9607843137254902, "precision_low": 0.8780129769618134, "precision_high": 0.988151087670519, "recall": 0.8521739130434782, "recall_low": 0.7689815046239162, "recall_high": 0.9089547870590334, "roc_auc": 0.9878260869565217, "roc_auc_low": 0.9714495147159226, "roc_auc_high": 0.9948587635292757, "log_loss": 0.2127094941346715, "log_loss_low": 0.17273614956573932, "log_loss_high": 0.25520350381724494, "brier": 0.05930363478198982, "brier_low": 0.0432401757223422, "brier_high": 0.07684988952897287}','{"basis": "", "levels": {}, "alarms": [], "accepted": [], "shifts": {}}','2026-11-04 01:00:00.000000','2026-11-04 01:00:00.000000');
INSERT INTO "onnxserve_monitor_windows" VALUES(5,'flights','level','2026-11-02 00:00:00.000000','2026-11-03 00:00:00.000000',1,0,'judged','not judged','the window has 24 requests; min_rows is 200; the clock of agent vm-f20ec0031c16 is an hour or more ahead: its rows are not waited for',24,240,'35827dbb0e8d854ad56b652a3e5aab74',0,NULL,'d4cb21b034384adda49722d4e526e2bf','','{"rows": 24.0}','{"basis": "", "levels": {}, "alarms": [], "accepted": [], "shifts": {}}','2026-11-04 01:00:00.000000','2026-11-04 01:00:00.000000');
INSERT INTO "onnxserve_monitor_windows" VALUES(6,'flights','level','2026-11-03 00:00:00.000000','2026-11-04 00:00:00.000000',1,0,'judged','not judged','the window has 24 requests; min_rows is 200; the clock of agent vm-f20ec0031c16 is an hour or more ahead: its rows are not waited for',24,240,'4c9d7057c3ba5578952d3bb31d29d6dc',0,NULL,'5cacb9c7dd5546ca8ecac9d8b16d0063','','{"rows": 24.0}','{"basis": "", "levels": {}, "alarms": [], "accepted": [], "shifts": {}}','2026-11-04 01:00:00.000000','2026-11-04 01:00:00.000000');
INSERT INTO "onnxserve_monitor_windows" VALUES(7,'flights','daily','2026-11-03 00:00:00.000000','2026-11-04 00:00:00.000000',2,1,'judged','drift','distance: mean 886.6 → 2842, higher; drift since the window of 3 November 2026; Wasserstein distance 6.91 deviations, 0.101 ± 0.034 in the reference''s own windows (p = 0.00249 compared with 400 samples of rows)',240,240,'4c9d7057c3ba5578952d3bb31d29d6dc',0,NULL,'20ebc1bb134c4e65a379dea900cf1b31','','{"rows": 240.0, "reference_rows": 600.0, "is_drift": 1.0, "p_value": 0.0024937655860349127, "statistic": 197.9411736697396, "threshold": 3.383765565261245, "blocks": 400.0, "independent_blocks": 400.0, "compared_rows": 240.0, "false_alarm_rate": 0.05, "share_of_drifted_columns": 0.16666666666666666, "drift_score/distance": 197.9411736697396, "drift_distance/distance": 6.910374033934819, "missing/distance": 0.0, "reference_missing/distance": 0.0016666666666666668, "drift_score/relations between columns": 13.283435481253525, "drift_distance/relations between columns": 0.5469822027999883, "drift_score/hour": 1.5007145583327832, "drift_distance/hour": 0.13666279342675947, "missing/hour": 0.0, "reference_missing/hour": 0.0, "drift_score/output.probabilities.0": 1.4046875, "drift_distance/output.probabilities.0": 0.03536365864295537, "missing/output.probabilities.0": 0.0, "reference_missing/output.probabilities.0": 0.0, "drift_score/output.probabilities.1": 1.4046875, "drift_distance/output.probabilities.1": 0.03536366225964667, "missing/output.probabilities.1": 0.0, "reference_missing/output.probabilities.1": 0.0, "drift_score/carrier": 1.2084361677915316, "drift_distance/carrier": 0.06663265842352796, "missing/carrier": 0.0, "reference_missing/carrier": 0.0, "drift_score/prediction": 0.0, "drift_distance/prediction": 0.002862025604794784, "missing/prediction": 0.0, "reference_missing/prediction": 0.0}','{"basis": "12fba97da6e7e31c2f44d22d66d579c5", "levels": {"relations between columns/_relations.0": 0.2570989873453116, "relations between columns/_relations.1": -0.7397899333759875, "relations between columns/_relations.2": 0.42635501121911656, "relations between columns/_relations.3": -0.22296219627673822, "relations between columns/_relations.4": 0.33749206620291256, "relations between columns/_relations.5": -1.6598468261179102, "relations between columns/_relations.6": -0.6129001461555692, "relations between columns/_relations.7": -1.0609538410316386, "carrier/missing": 0.0, "carrier/frequent": 0.30416666666666664, "distance/missing": 0.0, "distance/level": 2841.941227364833, "distance/spread": 5.720082465591601, "hour/missing": 0.0, "hour/level": 11.1875, "hour/spread": 1.947631777733568, "output.probabilities.0/missing": 0.0, "output.probabilities.0/level": 0.5705705418822422, "output.probabilities.0/spread": -0.9817200766686344, "output.probabilities.1/missing": 0.0, "output.probabilities.1/level": 0.4294294585979063, "output.probabilities.1/spread": -0.9817200810269954, "prediction/missing": 0.0, "prediction/frequent": 0.575}, "alarms": ["distance"], "accepted": ["distance"], "shifts": {}}','2026-11-04 02:00:00.000000','2026-11-04 02:00:00.000000');
INSERT INTO "onnxserve_monitor_windows" VALUES(8,'flights','level','2026-11-04 00:00:00.000000','2026-11-05 00:00:00.000000',1,0,'pending','','',0,0,'',0,NULL,'','','{}','{}','2026-11-04 02:00:00.000000','2026-11-04 02:00:00.000000');
INSERT INTO "onnxserve_monitor_windows" VALUES(9,'flights','accuracy','2026-11-04 00:00:00.000000','2026-11-05 00:00:00.000000',1,0,'failed','','the labels cannot be read',0,0,'',0,NULL,'','','{}','{}','2026-11-04 02:00:00.000000','2026-11-04 02:00:00.000000');
CREATE TABLE onnxserve_monitors (
	endpoint VARCHAR(63) NOT NULL,
	monitor VARCHAR(255) NOT NULL,
	paused BOOLEAN NOT NULL,
	paused_by VARCHAR(255) NOT NULL,
	made_up_to DATETIME,
	consecutive INTEGER NOT NULL,
	note TEXT NOT NULL,
	note_kind VARCHAR(31) DEFAULT '' NOT NULL,
	baseline JSON DEFAULT '{}' NOT NULL,
	expired JSON DEFAULT '{}' NOT NULL,
	expired_failures INTEGER DEFAULT '0' NOT NULL,
	PRIMARY KEY (endpoint, monitor)
);
INSERT INTO "onnxserve_monitors" VALUES('flights','daily',0,'','2026-11-04 00:00:00.000000',0,'','','{"distance": "2026-11-03T00:00:00+00:00"}','{}',0);
INSERT INTO "onnxserve_monitors" VALUES('flights','accuracy',0,'','2026-11-04 00:00:00.000000',0,'','','{}','{}',0);
INSERT INTO "onnxserve_monitors" VALUES('flights','level',1,'ada@laptop','2026-11-04 00:00:00.000000',0,'','','{}','{}',0);
CREATE TABLE onnxserve_registry_changes (
	model VARCHAR(512) NOT NULL,
	count BIGINT NOT NULL,
	changed_at DATETIME NOT NULL,
	PRIMARY KEY (model)
);
INSERT INTO "onnxserve_registry_changes" VALUES('flight-delay',1,'2026-11-04 06:00:00.000000');
CREATE TABLE onnxserve_retrainings (
	id INTEGER NOT NULL,
	endpoint VARCHAR(63) NOT NULL,
	monitor VARCHAR(255) NOT NULL,
	model VARCHAR(512) NOT NULL,
	cause JSON NOT NULL,
	spec JSON NOT NULL,
	state VARCHAR(31) NOT NULL,
	run_id VARCHAR(63) NOT NULL,
	version VARCHAR(255) NOT NULL,
	rollout_id BIGINT,
	waits_for VARCHAR(31) DEFAULT '' NOT NULL,
	reason TEXT NOT NULL,
	figures JSON NOT NULL,
	created_at DATETIME NOT NULL,
	updated_at DATETIME NOT NULL,
	ended_at DATETIME,
	PRIMARY KEY (id)
);
INSERT INTO "onnxserve_retrainings" VALUES(1,'flights','daily','flight-delay','{"kind": "alarm", "monitor": "daily", "monitor_kind": "drift", "window": "2026-11-03/2026-11-04", "revision": 1, "verdict": "drift", "version": "1", "run_id": "cceedb6047b84e7e867b4513451fc87d", "report": "run cceedb6047b84e7e867b4513451fc87d", "why": "monitor daily, 2026-11-03/2026-11-04: drift: distance: mean 886.6 \u2192 2842, higher; drift since the window of 3 November 2026; Wasserstein distance 6.91 deviations, 0.101 \u00b1 0.034 in the reference''s own windows (p = 0.00249 compared with 400 samples of rows)"}','{"endpoint": "flights", "model": "flight-delay", "base_version": "1", "project": "/srv/onnxserve/project", "entry_point": "train", "mode": "full", "env_manager": "local", "timeout": 21600.0, "then": "propose", "steps": "10,50,100", "step_every": "5m", "every": "1d", "window": "2026-11-03/2026-11-04", "parameters": {}, "min_requests": 100, "actor": "controller@laptop", "sample": null}','proposed','c0222fec78e842a0a1bc59be90776b8a','3',NULL,'','the version passed its gate without an evaluation (checked: parity, signature; not checked: evaluation: the policy skips it; not checked: robustness: the policy skips it; not checked: budget: the policy skips it); `onnxserve rollout flights --to 3` rolls it out','{"attempt": 1, "host": "laptop cb4bd3ee", "rows": 480, "data_digest": "547c8b739b0e194457206016dc6b477e6b3be38b3bb9e1c74c87aa773e0977f7", "held_out_rows": 0, "window": "2026-11-03/2026-11-04", "started_at": "2026-11-04T02:00:00+00:00", "gate": "passed without an evaluation", "gate_reason": "checked: parity, signature; not checked: evaluation: the policy skips it; not checked: robustness: the policy skips it; not checked: budget: the policy skips it", "gate_report": "d2d6d000c77a4523a0aeaa58b01b7e67/gate_report.html", "against": "1", "gated_at": "2026-11-04T02:00:00+00:00", "compared": true}','2026-11-04 01:00:00.000000','2026-11-04 02:00:00.000003','2026-11-04 02:00:00.000000');
CREATE TABLE onnxserve_rollouts (
	id INTEGER NOT NULL,
	endpoint VARCHAR(63) NOT NULL,
	spec JSON NOT NULL,
	state VARCHAR(31) NOT NULL,
	step INTEGER NOT NULL,
	step_at DATETIME NOT NULL,
	figures JSON NOT NULL,
	reason TEXT NOT NULL,
	revision INTEGER NOT NULL,
	created_at DATETIME NOT NULL,
	updated_at DATETIME NOT NULL,
	ended_at DATETIME,
	PRIMARY KEY (id)
);
INSERT INTO "onnxserve_rollouts" VALUES(1,'flights','{"endpoint": "flights", "main": "champion", "candidate": "candidate", "shadow": "", "to_uri": "models:/flight-delay/2", "model": "flight-delay", "version": "2", "before_uri": "models:/flight-delay@champion", "before_version": "1", "kind": "alias", "selector": "champion", "steps": [50, 100], "every": 1.0, "abort_on": "error_rate>20%", "level": 0.05, "min_requests": 5, "actor": "ada@laptop", "why": "it is new"}','promoted',1,'2026-11-04 02:00:00.000000','{"elapsed": 0.271, "current": {"requests": 4.0, "errors": 0.0}, "candidate": {"requests": 42.0, "errors": 0.0}, "criteria": {"error_rate>20%": {"figures": "0.00% of 42 requests to version 2 failed, 0.00% of 4 to version 1", "log_evidence": -3.859, "log_evidence_needed": 4.382}}, "trace": [[0.0, 0, {"error_rate>20%": 0.0}], [0.0, 0, {"error_rate>20%": -0.2947}], [0.0, 0, {"error_rate>20%": -0.3977}], [0.0, 0, {"error_rate>20%": -0.5026}], [0.0, 0, {"error_rate>20%": -0.5698}], [0.0, 0, {"error_rate>20%": -0.6311}], [0.0, 1, {"error_rate>20%": 0.0}], [0.0, 1, {"error_rate>20%": -0.4973}], [0.0, 1, {"error_rate>20%": -0.5947}], [0.0, 1, {"error_rate>20%": -0.6967}], [0.0, 1, {"error_rate>20%": -0.7912}], [0.0, 1, {"error_rate>20%": -0.8806}], [0.0, 1, {"error_rate>20%": -0.8806}], [0.0, 1, {"error_rate>20%": -0.8806}], [0.0, 1, {"error_rate>20%": -0.8806}], [0.0, 1, {"error_rate>20%": -0.8806}]], "ledger": {"last": {"flights": {"current": {"requests": 104.0, "errors": 0.0, "timed": {"0.0005": 0.0, "0.001": 12.0, "0.0025": 95.0, "0.005": 99.0, "0.01": 103.0, "0.025": 103.0, "0.05": 103.0, "0.1": 103.0, "0.25": 104.0, "0.5": 104.0, "1.0": 104.0, "2.5": 104.0, "5.0": 104.0, "10.0": 104.0, "inf": 104.0}, "same": 0.0, "different": 0.0, "refused": 0.0}, "candidate": {"requests": 60.0, "errors": 0.0, "timed": {"0.0005": 0.0, "0.001": 0.0, "0.0025": 58.0, "0.005": 59.0, "0.01": 60.0, "0.025": 60.0, "0.05": 60.0, "0.1": 60.0, "0.25": 60.0, "0.5": 60.0, "1.0": 60.0, "2.5": 60.0, "5.0": 60.0, "10.0": 60.0, "inf": 60.0}, "same": 0.0, "different": 0.0, "refused": 0.0}, "shadow": {"requests": 0.0, "errors": 0.0, "timed": {}, "same": 0.0, "different": 0.0, "refused": 0.0}}}, "step": {"current": {"requests": 4.0, "errors": 0.0, "timed": {"0.0005": 0.0, "0.001": 0.0, "0.0025": 2.0, "0.005": 3.0, "0.01": 4.0, "0.025": 4.0, "0.05": 4.0, "0.1": 4.0, "0.25": 4.0, "0.5": 4.0, "1.0": 4.0, "2.5": 4.0, "5.0": 4.0, "10.0": 4.0, "inf": 4.0}, "same": 0.0, "different": 0.0, "refused": 0.0}, "candidate": {"requests": 42.0, "errors": 0.0, "timed": {"0.0005": 0.0, "0.001": 0.0, "0.0025": 41.0, "0.005": 41.0, "0.01": 42.0, "0.025": 42.0, "0.05": 42.0, "0.1": 42.0, "0.25": 42.0, "0.5": 42.0, "1.0": 42.0, "2.5": 42.0, "5.0": 42.0, "10.0": 42.0, "inf": 42.0}, "same": 0.0, "different": 0.0, "refused": 0.0}, "shadow": {"requests": 0.0, "errors": 0.0, "timed": {}, "same": 0.0, "different": 0.0, "refused": 0.0}}, "current": {"all": {"requests": 104.0, "errors": 0.0, "timed": {"0.0005": 0.0, "0.001": 12.0, "0.0025": 95.0, "0.005": 99.0, "0.01": 103.0, "0.025": 103.0, "0.05": 103.0, "0.1": 103.0, "0.25": 104.0, "0.5": 104.0, "1.0": 104.0, "2.5": 104.0, "5.0": 104.0, "10.0": 104.0, "inf": 104.0}, "same": 0.0, "different": 0.0, "refused": 0.0}, "before": {"requests": 100.0, "errors": 0.0, "timed": {"0.0005": 0.0, "0.001": 12.0, "0.0025": 93.0, "0.005": 96.0, "0.01": 99.0, "0.025": 99.0, "0.05": 99.0, "0.1": 99.0, "0.25": 100.0, "0.5": 100.0, "1.0": 100.0, "2.5": 100.0, "5.0": 100.0, "10.0": 100.0, "inf": 100.0}, "same": 0.0, "different": 0.0, "refused": 0.0}}, "tests": {"error_rate>20%": [[-2.0491868951161445, -4.003027551781645, -7.657505385346095, -14.131833938090946, -24.687039925889003, -43.244015521608645, -80.51074971164655], [0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]]}}}','version 2 is served instead of 1',17,'2026-11-04 02:00:00.000000','2026-11-04 02:00:00.000000','2026-11-04 02:00:00.000000');
INSERT INTO "onnxserve_rollouts" VALUES(2,'flights','{"endpoint": "flights", "main": "champion", "candidate": "candidate", "shadow": "candidate-shadow", "to_uri": "models:/flight-delay/1", "model": "flight-delay", "version": "1", "before_uri": "models:/flight-delay@champion", "before_version": "2", "kind": "alias", "selector": "champion", "steps": [50, 100], "every": 3600.0, "abort_on": "error_rate>20%,p99>50x,disagreement>90%", "level": 0.05, "min_requests": 1000, "actor": "ada@laptop", "why": ""}','paused',0,'2026-11-04 02:00:00.000000','{"elapsed": 1.709, "current": {"requests": 42.0, "errors": 0.0}, "candidate": {"requests": 25.0, "errors": 0.0}, "shadow": {"same": 42.0, "different": 0.0}, "criteria": {"error_rate>20%": {"figures": "0.00% of 25 requests to version 1 failed, 0.00% of 42 to version 2", "log_evidence": -2.866, "log_evidence_needed": 4.787}, "p99>50x": {"figures": "0.00% of 25 requests to version 1 took longer than 500 ms, 0.00% of 42 to version 2", "log_evidence": 0.0, "log_evidence_needed": 4.787}, "disagreement>90%": {"figures": "version 1 answers 0.00% of 42 rows differently from the current version", "log_evidence": -10.469, "log_evidence_needed": 4.787}}, "trace": [[0.0, 0, {"error_rate>20%": 0.0, "p99>50x": 0.0, "disagreement>90%": 0.0}], [0.0, 0, {"error_rate>20%": -0.5987, "p99>50x": 0.0, "disagreement>90%": -2.187}], [0.0, 0, {"error_rate>20%": -0.5987, "p99>50x": 0.0, "disagreement>90%": -2.187}]], "ledger": {"last": {"flights": {"current": {"requests": 109.0, "errors": 0.0, "timed": {"0.0005": 0.0, "0.001": 0.0, "0.0025": 105.0, "0.005": 107.0, "0.01": 109.0, "0.025": 109.0, "0.05": 109.0, "0.1": 109.0, "0.25": 109.0, "0.5": 109.0, "1.0": 109.0, "2.5": 109.0, "5.0": 109.0, "10.0": 109.0, "inf": 109.0}, "same": 0.0, "different": 0.0, "refused": 0.0}, "candidate": {"requests": 25.0, "errors": 0.0, "timed": {"0.0005": 0.0, "0.001": 0.0, "0.0025": 25.0, "0.005": 25.0, "0.01": 25.0, "0.025": 25.0, "0.05": 25.0, "0.1": 25.0, "0.25": 25.0, "0.5": 25.0, "1.0": 25.0, "2.5": 25.0, "5.0": 25.0, "10.0": 25.0, "inf": 25.0}, "same": 0.0, "different": 0.0, "refused": 0.0}, "shadow": {"requests": 0.0, "errors": 0.0, "timed": {}, "same": 91.0, "different": 0.0, "refused": 0.0}}}, "step": {"current": {"requests": 42.0, "errors": 0.0, "timed": {"0.0005": 0.0, "0.001": 0.0, "0.0025": 38.0, "0.005": 40.0, "0.01": 42.0, "0.025": 42.0, "0.05": 42.0, "0.1": 42.0, "0.25": 42.0, "0.5": 42.0, "1.0": 42.0, "2.5": 42.0, "5.0": 42.0, "10.0": 42.0, "inf": 42.0}, "same": 0.0, "different": 0.0, "refused": 0.0}, "candidate": {"requests": 25.0, "errors": 0.0, "timed": {"0.0005": 0.0, "0.001": 0.0, "0.0025": 25.0, "0.005": 25.0, "0.01": 25.0, "0.025": 25.0, "0.05": 25.0, "0.1": 25.0, "0.25": 25.0, "0.5": 25.0, "1.0": 25.0, "2.5": 25.0, "5.0": 25.0, "10.0": 25.0, "inf": 25.0}, "same": 0.0, "different": 0.0, "refused": 0.0}, "shadow": {"requests": 0.0, "errors": 0.0, "timed": {}, "same": 42.0, "different": 0.0, "refused": 0.0}}, "current": {"all": {"requests": 109.0, "errors": 0.0, "timed": {"0.0005": 0.0, "0.001": 0.0, "0.0025": 105.0, "0.005": 107.0, "0.01": 109.0, "0.025": 109.0, "0.05": 109.0, "0.1": 109.0, "0.25": 109.0, "0.5": 109.0, "1.0": 109.0, "2.5": 109.0, "5.0": 109.0, "10.0": 109.0, "inf": 109.0}, "same": 0.0, "different": 0.0, "refused": 0.0}, "before": {"requests": 67.0, "errors": 0.0, "timed": {"0.0005": 0.0, "0.001": 0.0, "0.0025": 67.0, "0.005": 67.0, "0.01": 67.0, "0.025": 67.0, "0.05": 67.0, "0.1": 67.0, "0.25": 67.0, "0.5": 67.0, "1.0": 67.0, "2.5": 67.0, "5.0": 67.0, "10.0": 67.0, "inf": 67.0}, "same": 0.0, "different": 0.0, "refused": 0.0}}, "tests": {"error_rate>20%": [[-1.2197541042358002, -2.3827544951081214, -4.558038919848866, -8.411805915530323, -14.694666622552976, -25.74048542952896, -47.92306530455153], [0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]], "p99>50x": [[0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]], "disagreement>90%": [[-8.523515447860994, -15.60566937016429, -26.957863219240583, -43.24401552160865, -64.09436474679208, -92.74752536795778, -138.5804165711975], [0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]]}}}','paused by ada@laptop: it is Friday',4,'2026-11-04 02:00:00.000000','2026-11-04 02:00:00.000000',NULL);
CREATE TABLE onnxserve_silences (
	id INTEGER NOT NULL,
	endpoint VARCHAR(63) NOT NULL,
	monitor VARCHAR(255) NOT NULL,
	until DATETIME NOT NULL,
	why TEXT NOT NULL,
	actor VARCHAR(255) NOT NULL,
	created_at DATETIME NOT NULL,
	PRIMARY KEY (id)
);
INSERT INTO "onnxserve_silences" VALUES(1,'flights','accuracy','2026-11-11 02:00:00.000000','the labels are late','ada@laptop','2026-11-04 02:00:00.000000');
CREATE INDEX ix_onnxserve_audit_events_endpoint ON onnxserve_audit_events (endpoint);
CREATE INDEX ix_onnxserve_audit_events_deleted ON onnxserve_audit_events (endpoint) WHERE action = 'delete';
CREATE INDEX ix_onnxserve_audit_events_model ON onnxserve_audit_events (model);
CREATE UNIQUE INDEX ux_onnxserve_rollouts_live ON onnxserve_rollouts (endpoint) WHERE ended_at IS NULL;
CREATE INDEX ix_onnxserve_rollouts_endpoint ON onnxserve_rollouts (endpoint);
CREATE INDEX ix_onnxserve_monitor_windows_state ON onnxserve_monitor_windows (state);
CREATE INDEX ix_onnxserve_monitor_windows_counted ON onnxserve_monitor_windows (by_hand, endpoint, monitor, state, verdict, attempts, updated_at);
CREATE INDEX ix_onnxserve_alerts_endpoint ON onnxserve_alerts (endpoint);
CREATE INDEX ix_onnxserve_alerts_fingerprint ON onnxserve_alerts (fingerprint);
CREATE INDEX ix_onnxserve_silences_endpoint ON onnxserve_silences (endpoint);
CREATE INDEX ix_onnxserve_retrainings_endpoint ON onnxserve_retrainings (endpoint);
CREATE INDEX ix_onnxserve_retrainings_model ON onnxserve_retrainings (model);
CREATE INDEX ix_onnxserve_registry_changes_changed_at ON onnxserve_registry_changes (changed_at);
COMMIT;
