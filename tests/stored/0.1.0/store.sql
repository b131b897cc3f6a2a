BEGIN TRANSACTION;
CREATE TABLE onnxserve_alembic_version (version_num VARCHAR(32) NOT NULL PRIMARY KEY);
INSERT INTO "onnxserve_alembic_version" VALUES('0017');
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
INSERT INTO "onnxserve_alerts" VALUES(1,'flights/daily','flights','daily','firing','2026-11-04 01:00:00.000000','2026-11-04 01:00:00.000000',NULL,1,'{"order": "2026-11-03T00:00:00+00:00 000001", "weight": 20.0, "lines": ["flights, flight-delay version 1, 2026-11-03/2026-11-04: drift", "- distance, range, share out of range 105 SD (threshold 5.632 SD): out of range 0.4% \u2192 100.0%, more above; changes the probability of on time by -0.058 on average, and the class of 5.4% of the rows; drift since the window of 3 November 2026; 100.0% of rows are outside of -24.1 to 1830 (above), 0.4% \u00b1 0.9% is usual", "- distance, distribution, mean 90.16 SD (threshold 3.525 SD): mean 886.6 \u2192 2842, higher; changes the probability of on time by -0.058 on average, and the class of 5.4% of the rows; drift since the window of 3 November 2026; mean 2842, 886.9 \u00b1 21.3 is usual"], "link": "", "next": "next: onnxserve retrain run flights --monitor daily, or onnxserve alert silence flights --monitor daily --for 2h", "tags": [], "news": "firing", "number": 1, "since": "2026-11-04T01:00:00+00:00", "told_weight": 20.0, "changes": ["distance"], "is_told": false}');
INSERT INTO "onnxserve_alerts" VALUES(2,'flights/accuracy/failing','flights','accuracy','resolved','2026-11-04 02:00:00.000000','2026-11-04 02:00:00.000000',NULL,1,'{"order": "", "weight": 1.0, "lines": ["the labels can be read"], "link": "", "next": "", "tags": [], "news": "resolved", "number": 2, "since": "2026-11-04T02:00:00+00:00", "told_weight": 0.0, "changes": [], "is_told": false}');
INSERT INTO "onnxserve_alerts" VALUES(3,'flights/daily/said/7569a3be1684','flights','daily','said','2026-11-04 02:00:00.000000','2026-11-04 02:00:00.000000',NULL,1,'{"order": "", "weight": 1.0, "lines": ["flights: flight-delay version 3 is proposed: the version passed its gate without an evaluation (checked: parity, signature; not checked: evaluation: the policy skips it; not checked: robustness: the policy skips it; not checked: budget: the policy skips it); `onnxserve rollout start flights --to 3` rolls it out"], "link": "", "next": "", "tags": [], "news": "said", "number": 1, "since": "2026-11-04T02:00:00+00:00", "told_weight": 1.0, "changes": [], "is_told": false}');
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
INSERT INTO "onnxserve_api_keys" VALUES('robot','3884edb8235072b998aa0d39e04ee4af0792c89d86c9422e98364628b300679f','["infer", "read"]','["flights"]','ada@laptop','2026-11-02 00:00:00.000000',NULL,NULL,'["10/second", "1000/hour"]');
INSERT INTO "onnxserve_api_keys" VALUES('dashboard','10e038bc0b65291bfe0061048599cf1a578a9411a1cb10ad34a74efd9b63b6ae','["read"]','[]','ada@laptop','2026-11-02 00:00:00.000000','2027-01-31 00:00:00.000000',NULL,'[]');
INSERT INTO "onnxserve_api_keys" VALUES('lost','d8500ef0a8d9e580537633896c7d7c8133192e192dd363f8e0ea000f4bb2be09','["admin"]','[]','ada@laptop','2026-11-02 00:00:00.000000',NULL,'2026-11-02 00:00:00.000000','[]');
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
	place BIGINT,
	signed_by VARCHAR(63) DEFAULT '' NOT NULL,
	PRIMARY KEY (id)
);
INSERT INTO "onnxserve_audit_events" VALUES(1,'2026-11-02 00:00:00.000000','ada@laptop','gate','','flight-delay','1','','passed without an evaluation','checked: parity; not checked: signature: there is no version to compare it with; not checked: evaluation: the policy skips it; not checked: robustness: the policy skips it; not checked: budget: the policy skips it','{"tagged": true, "files": "ced2271aa765b1f0af660cdd088744eac0d5624e5b689e53ee1fb95c4cd2e606", "policy": "tag onnxserve.gate.policy of model flight-delay", "policy_digest": "4ef4228eda6a637c", "report": "57888c04dba447ffa8417ff72121faa2/gate_report.html", "run_id": "57888c04dba447ffa8417ff72121faa2", "report_digest": "8deb041619fe96b756b1224aa45232158efee09a1d292fde78c4d8a7b76afd48", "checks": {"parity": {"state": "passed", "rows": 1894.0}, "signature": {"state": "skipped"}, "evaluation": {"state": "skipped"}, "robustness": {"state": "skipped"}, "budget": {"state": "skipped"}}, "act": "66849f94b34c53f3"}',NULL,'');
INSERT INTO "onnxserve_audit_events" VALUES(2,'2026-11-02 00:00:00.000000','ada@laptop','promote','','flight-delay','1','','version 1 in @champion','checked: parity; not checked: signature: there is no version to compare it with; not checked: evaluation: the policy skips it; not checked: robustness: the policy skips it; not checked: budget: the policy skips it','{"to": "@champion", "gate": "passed without an evaluation", "report": "57888c04dba447ffa8417ff72121faa2/gate_report.html", "moved": {"place": "@champion", "before": ""}, "act": "66849f94b34c53f3"}',NULL,'');
INSERT INTO "onnxserve_audit_events" VALUES(3,'2026-11-02 00:00:00.000000','ada@laptop','create','flights','','','','champion: models:/flight-delay@champion (100 %)','','{"spec": "apiVersion: onnxserve/v1\nname: flights\nvariants:\n  champion:\n    model: models:/flight-delay@champion\nserver:\n  port: 20257\n  model_control_mode: explicit\nmonitors:\n  daily:\n    min_rows: 100\n    independent_rows: true\n    retrain:\n      project: /srv/onnxserve/project\n      env_manager: local\n  accuracy:\n    kind: performance\n    min_rows: 100\n    require:\n    - accuracy>=0.6\n  level:\n    kind: service_level\n    require:\n    - error_rate<=1%\n"}',NULL,'');
INSERT INTO "onnxserve_audit_events" VALUES(4,'2026-11-02 00:00:00.000000','ada@laptop','update','flights','','','','challenger models:/flight-delay/2 shadow','a comparison','{"spec": "apiVersion: onnxserve/v1\nname: flights\nvariants:\n  champion:\n    model: models:/flight-delay@champion\n  challenger:\n    model: models:/flight-delay/2\n    weight: 0\n    shadow: true\nserver:\n  port: 20257\n  model_control_mode: explicit\nmonitors:\n  daily:\n    min_rows: 100\n    independent_rows: true\n    retrain:\n      project: /srv/onnxserve/project\n      env_manager: local\n  accuracy:\n    kind: performance\n    min_rows: 100\n    require:\n    - accuracy>=0.6\n  level:\n    kind: service_level\n    require:\n    - error_rate<=1%\n"}',NULL,'');
INSERT INTO "onnxserve_audit_events" VALUES(5,'2026-11-02 00:00:00.000000','ada@laptop','key.create','','','','','key robot','','{"scopes": ["infer", "read"], "endpoints": ["flights"], "limits": ["10/second", "1000/hour"]}',NULL,'');
INSERT INTO "onnxserve_audit_events" VALUES(6,'2026-11-02 00:00:00.000000','ada@laptop','key.create','','','','','key dashboard','','{"scopes": ["read"], "endpoints": [], "limits": []}',NULL,'');
INSERT INTO "onnxserve_audit_events" VALUES(7,'2026-11-02 00:00:00.000000','ada@laptop','key.create','','','','','key lost','','{"scopes": ["admin"], "endpoints": [], "limits": []}',NULL,'');
INSERT INTO "onnxserve_audit_events" VALUES(8,'2026-11-02 00:00:00.000000','ada@laptop','key.revoke','','','','key lost','','it was in a log','{}',NULL,'');
INSERT INTO "onnxserve_audit_events" VALUES(9,'2026-11-04 01:00:00.000000','controller@laptop','retrain.start','flights','flight-delay','','version 1','full training','monitor daily, 2026-11-03/2026-11-04: drift: distance: out of range 0.4% → 100.0%, more above; changes the probability of on time by -0.058 on average, and the class of 5.4% of the rows; since 3 November 2026','{"monitor": "daily", "window": "2026-11-03/2026-11-04", "verdict": "drift", "report": "run 9942db41e22c4328a68b83eff3729cb7"}',NULL,'');
INSERT INTO "onnxserve_audit_events" VALUES(10,'2026-11-04 02:00:00.000000','ada@laptop','monitor.accept','flights','','','','','there are new routes','{"monitor": "daily", "baseline": "distance since 2026-11-03T00:00:00+00:00"}',NULL,'');
INSERT INTO "onnxserve_audit_events" VALUES(11,'2026-11-04 02:00:00.000000','ada@laptop','monitor.pause','flights','','','','','the gateway measures this','{"monitor": "level"}',NULL,'');
INSERT INTO "onnxserve_audit_events" VALUES(12,'2026-11-04 02:00:00.000000','ada@laptop','silence','flights','','','','','the labels are late','{"monitor": "accuracy", "until": "2026-11-11T02:00:00+00:00", "silence": 1}',NULL,'');
INSERT INTO "onnxserve_audit_events" VALUES(13,'2026-11-04 02:00:00.000000','controller@laptop','retrain.run','flights','flight-delay','','version 1','run 2ab9a1ac2d74438ca002df62108a301e','retraining 1 trains on 480 labelled rows up to 2026-11-04','{"retraining": 1, "held_out_rows": 0, "window": "2026-11-03/2026-11-04", "attempt": 1}',NULL,'');
INSERT INTO "onnxserve_audit_events" VALUES(14,'2026-11-04 02:00:00.000000','controller@laptop','retrain.version','flights','flight-delay','3','version 1','version 3','run 2ab9a1ac2d74438ca002df62108a301e of retraining 1 registered the version','{"retraining": 1}',NULL,'');
INSERT INTO "onnxserve_audit_events" VALUES(15,'2026-11-04 02:00:00.000000','controller@laptop','gate','','flight-delay','3','models:/flight-delay/1','passed without an evaluation','checked: parity, signature; not checked: evaluation: the policy skips it; not checked: robustness: the policy skips it; not checked: budget: the policy skips it','{"tagged": true, "files": "2a0c79c373fc1370722881a02417b72420be9ff91b1568a2a63cea01ec72d71d", "policy": "tag onnxserve.gate.policy of model flight-delay", "policy_digest": "4ef4228eda6a637c", "report": "31fc00f6fc834e83a4f205670f5d567b/gate_report.html", "run_id": "31fc00f6fc834e83a4f205670f5d567b", "report_digest": "af2129321edacad235bbd2d26b7d2bfb76af5107124304b8ce4f148988818aba", "checks": {"parity": {"state": "passed", "rows": 1894.0}, "signature": {"state": "passed", "changes": 0.0, "breaking": 0.0}, "evaluation": {"state": "skipped"}, "robustness": {"state": "skipped"}, "budget": {"state": "skipped"}}}',NULL,'');
INSERT INTO "onnxserve_audit_events" VALUES(16,'2026-11-04 02:00:00.000000','controller@laptop','retrain.end','flights','flight-delay','3','','proposed','the version passed its gate without an evaluation (checked: parity, signature; not checked: evaluation: the policy skips it; not checked: robustness: the policy skips it; not checked: budget: the policy skips it); `onnxserve rollout start flights --to 3` rolls it out','{"retraining": 1, "state": "proposed", "run_id": "2ab9a1ac2d74438ca002df62108a301e"}',NULL,'');
INSERT INTO "onnxserve_audit_events" VALUES(17,'2026-12-01 14:53:28.299782','ada@laptop','rollout.start','flights','flight-delay','2','version 1','version 2 by 50 %, 100 %','it is new','{"steps": [50, 100], "every": 1.0, "abort_on": "error_rate>20%"}',NULL,'');
INSERT INTO "onnxserve_audit_events" VALUES(18,'2026-11-04 02:00:00.000000','ada@laptop','update','flights','','','variants.candidate.allow_pyfunc not set','candidate models:/flight-delay/2 0, variants.candidate.allow_pyfunc True','rollout to version 2','{"spec": "apiVersion: onnxserve/v1\nname: flights\nvariants:\n  champion:\n    model: models:/flight-delay@champion\n  challenger:\n    model: models:/flight-delay/2\n    weight: 0\n    shadow: true\n  candidate:\n    model: models:/flight-delay/2\n    weight: 0\n    allow_pyfunc: true\nserver:\n  port: 20257\n  model_control_mode: explicit\nmonitors:\n  daily:\n    min_rows: 100\n    independent_rows: true\n    retrain:\n      project: /srv/onnxserve/project\n      env_manager: local\n  accuracy:\n    kind: performance\n    min_rows: 100\n    require:\n    - accuracy>=0.6\n  level:\n    kind: service_level\n    require:\n    - error_rate<=1%\n"}',NULL,'');
INSERT INTO "onnxserve_audit_events" VALUES(19,'2026-11-04 02:00:00.000000','ada@laptop','rollout.step','flights','flight-delay','2','0 %','50 %','waiting for requests: the candidate has answered 0 of 5','{"rollout": 1, "state": "stepping"}',NULL,'');
INSERT INTO "onnxserve_audit_events" VALUES(20,'2026-11-04 02:00:00.000000','ada@laptop','traffic','flights','','','champion 100, candidate 0','champion 50, candidate 50','step 50 % of a rollout','{"spec": "apiVersion: onnxserve/v1\nname: flights\nvariants:\n  champion:\n    model: models:/flight-delay@champion\n    weight: 50\n  challenger:\n    model: models:/flight-delay/2\n    weight: 0\n    shadow: true\n  candidate:\n    model: models:/flight-delay/2\n    weight: 50\n    allow_pyfunc: true\nserver:\n  port: 20257\n  model_control_mode: explicit\nmonitors:\n  daily:\n    min_rows: 100\n    independent_rows: true\n    retrain:\n      project: /srv/onnxserve/project\n      env_manager: local\n  accuracy:\n    kind: performance\n    min_rows: 100\n    require:\n    - accuracy>=0.6\n  level:\n    kind: service_level\n    require:\n    - error_rate<=1%\n"}',NULL,'');
INSERT INTO "onnxserve_audit_events" VALUES(21,'2026-11-04 02:00:00.000000','ada@laptop','rollout.step','flights','flight-delay','2','50 %','100 %','','{"rollout": 1, "state": "stepping", "current": {"requests": 19.0, "errors": 0.0}, "candidate": {"requests": 4.0, "errors": 0.0}, "criteria": {"error_rate>20%": {"figures": "0.00% of 4 requests to version 2 failed, 0.00% of 19 to version 1", "log_evidence": -1.087, "log_evidence_needed": 3.689}}}',NULL,'');
INSERT INTO "onnxserve_audit_events" VALUES(22,'2026-11-04 02:00:00.000000','ada@laptop','traffic','flights','','','champion 50, candidate 50','champion 0, candidate 100','step 100 % of a rollout','{"spec": "apiVersion: onnxserve/v1\nname: flights\nvariants:\n  champion:\n    model: models:/flight-delay@champion\n    weight: 0\n  challenger:\n    model: models:/flight-delay/2\n    weight: 0\n    shadow: true\n  candidate:\n    model: models:/flight-delay/2\n    allow_pyfunc: true\nserver:\n  port: 20257\n  model_control_mode: explicit\nmonitors:\n  daily:\n    min_rows: 100\n    independent_rows: true\n    retrain:\n      project: /srv/onnxserve/project\n      env_manager: local\n  accuracy:\n    kind: performance\n    min_rows: 100\n    require:\n    - accuracy>=0.6\n  level:\n    kind: service_level\n    require:\n    - error_rate<=1%\n"}',NULL,'');
INSERT INTO "onnxserve_audit_events" VALUES(23,'2026-11-04 02:00:00.000000','ada@laptop','alias','flights','flight-delay','2','version 1 in champion','version 2 in champion','rollout to version 2 has passed its steps','{"stood_there": "1", "moved": {"place": "@champion", "before": "1"}}',NULL,'');
INSERT INTO "onnxserve_audit_events" VALUES(24,'2026-11-04 02:00:00.000000','ada@laptop','traffic','flights','','','champion 0, candidate 100','champion 100, candidate 0','rollout to version 2 has promoted it','{"spec": "apiVersion: onnxserve/v1\nname: flights\nvariants:\n  champion:\n    model: models:/flight-delay@champion\n  challenger:\n    model: models:/flight-delay/2\n    weight: 0\n    shadow: true\n  candidate:\n    model: models:/flight-delay/2\n    weight: 0\n    allow_pyfunc: true\nserver:\n  port: 20257\n  model_control_mode: explicit\nmonitors:\n  daily:\n    min_rows: 100\n    independent_rows: true\n    retrain:\n      project: /srv/onnxserve/project\n      env_manager: local\n  accuracy:\n    kind: performance\n    min_rows: 100\n    require:\n    - accuracy>=0.6\n  level:\n    kind: service_level\n    require:\n    - error_rate<=1%\n"}',NULL,'');
INSERT INTO "onnxserve_audit_events" VALUES(25,'2026-11-04 02:00:00.000000','ada@laptop','update','flights','','','candidate models:/flight-delay/2 0, variants.candidate.allow_pyfunc True','variants.candidate.allow_pyfunc not set','rollout to version 2 has promoted it','{"spec": "apiVersion: onnxserve/v1\nname: flights\nvariants:\n  champion:\n    model: models:/flight-delay@champion\n  challenger:\n    model: models:/flight-delay/2\n    weight: 0\n    shadow: true\nserver:\n  port: 20257\n  model_control_mode: explicit\nmonitors:\n  daily:\n    min_rows: 100\n    independent_rows: true\n    retrain:\n      project: /srv/onnxserve/project\n      env_manager: local\n  accuracy:\n    kind: performance\n    min_rows: 100\n    require:\n    - accuracy>=0.6\n  level:\n    kind: service_level\n    require:\n    - error_rate<=1%\n"}',NULL,'');
INSERT INTO "onnxserve_audit_events" VALUES(26,'2026-11-04 02:00:00.000000','ada@laptop','rollout.end','flights','flight-delay','2','version 1','version 2','version 2 is served instead of 1','{"rollout": 1, "state": "promoted", "current": {"requests": 2.0, "errors": 0.0}, "candidate": {"requests": 23.0, "errors": 0.0}, "criteria": {"error_rate>20%": {"figures": "0.00% of 23 requests to version 2 failed, 0.00% of 2 to version 1", "log_evidence": -2.738, "log_evidence_needed": 4.382}}, "moved": {"place": "", "before": "1"}}',NULL,'');
INSERT INTO "onnxserve_audit_events" VALUES(27,'2026-12-01 14:53:32.910558','ada@laptop','rollout.start','flights','flight-delay','1','version 2','version 1 by 50 %, 100 %','','{"steps": [50, 100], "every": 3600.0, "abort_on": "error_rate>20%,p99>50x,disagreement>90%"}',NULL,'');
INSERT INTO "onnxserve_audit_events" VALUES(28,'2026-11-04 02:00:00.000000','ada@laptop','update','flights','','','variants.candidate.allow_pyfunc not set','candidate models:/flight-delay/1 0, variants.candidate.allow_pyfunc True','rollout to version 1','{"spec": "apiVersion: onnxserve/v1\nname: flights\nvariants:\n  champion:\n    model: models:/flight-delay@champion\n  challenger:\n    model: models:/flight-delay/2\n    weight: 0\n    shadow: true\n  candidate:\n    model: models:/flight-delay/1\n    weight: 0\n    allow_pyfunc: true\nserver:\n  port: 20257\n  model_control_mode: explicit\nmonitors:\n  daily:\n    min_rows: 100\n    independent_rows: true\n    retrain:\n      project: /srv/onnxserve/project\n      env_manager: local\n  accuracy:\n    kind: performance\n    min_rows: 100\n    require:\n    - accuracy>=0.6\n  level:\n    kind: service_level\n    require:\n    - error_rate<=1%\n"}',NULL,'');
INSERT INTO "onnxserve_audit_events" VALUES(29,'2026-11-04 02:00:00.000000','ada@laptop','update','flights','','','variants.candidate-shadow.allow_pyfunc not set','candidate-shadow models:/flight-delay/1 shadow, variants.candidate-shadow.allow_pyfunc True','rollout to version 1','{"spec": "apiVersion: onnxserve/v1\nname: flights\nvariants:\n  champion:\n    model: models:/flight-delay@champion\n  challenger:\n    model: models:/flight-delay/2\n    weight: 0\n    shadow: true\n  candidate:\n    model: models:/flight-delay/1\n    weight: 0\n    allow_pyfunc: true\n  candidate-shadow:\n    model: models:/flight-delay/1\n    weight: 0\n    shadow: true\n    allow_pyfunc: true\nserver:\n  port: 20257\n  model_control_mode: explicit\nmonitors:\n  daily:\n    min_rows: 100\n    independent_rows: true\n    retrain:\n      project: /srv/onnxserve/project\n      env_manager: local\n  accuracy:\n    kind: performance\n    min_rows: 100\n    require:\n    - accuracy>=0.6\n  level:\n    kind: service_level\n    require:\n    - error_rate<=1%\n"}',NULL,'');
INSERT INTO "onnxserve_audit_events" VALUES(30,'2026-11-04 02:00:00.000000','ada@laptop','rollout.step','flights','flight-delay','1','0 %','50 %','waiting for requests: the candidate has answered 0 of 1000','{"rollout": 2, "state": "stepping"}',NULL,'');
INSERT INTO "onnxserve_audit_events" VALUES(31,'2026-11-04 02:00:00.000000','ada@laptop','traffic','flights','','','champion 100, candidate 0','champion 50, candidate 50','step 50 % of a rollout','{"spec": "apiVersion: onnxserve/v1\nname: flights\nvariants:\n  champion:\n    model: models:/flight-delay@champion\n    weight: 50\n  challenger:\n    model: models:/flight-delay/2\n    weight: 0\n    shadow: true\n  candidate:\n    model: models:/flight-delay/1\n    weight: 50\n    allow_pyfunc: true\n  candidate-shadow:\n    model: models:/flight-delay/1\n    weight: 0\n    shadow: true\n    allow_pyfunc: true\nserver:\n  port: 20257\n  model_control_mode: explicit\nmonitors:\n  daily:\n    min_rows: 100\n    independent_rows: true\n    retrain:\n      project: /srv/onnxserve/project\n      env_manager: local\n  accuracy:\n    kind: performance\n    min_rows: 100\n    require:\n    - accuracy>=0.6\n  level:\n    kind: service_level\n    require:\n    - error_rate<=1%\n"}',NULL,'');
INSERT INTO "onnxserve_audit_events" VALUES(32,'2026-11-04 02:00:00.000000','ada@laptop','rollout.step','flights','flight-delay','1','stepping','paused','paused by ada@laptop: it is Friday','{"rollout": 2, "state": "paused", "current": {"requests": 23.0, "errors": 0.0}, "candidate": {"requests": 11.0, "errors": 0.0}, "shadow": {"same": 24.0, "different": 0.0}, "criteria": {"error_rate>20%": {"figures": "0.00% of 11 requests to version 1 failed, 0.00% of 23 to version 2", "log_evidence": -1.854, "log_evidence_needed": 4.787}, "p99>50x": {"figures": "not judged: version 2 has too few timed requests", "log_evidence": 0.0, "log_evidence_needed": 4.787}, "disagreement>90%": {"figures": "version 1 answers 0.00% of 24 rows differently from the current version", "log_evidence": -6.799, "log_evidence_needed": 4.787}}}',NULL,'');
INSERT INTO "onnxserve_audit_events" VALUES(33,'2026-11-04 03:00:00.000000','ben','register','','flight-delay','3','','','','{"created": 1796136804318, "authors": ["ben"]}',NULL,'');
INSERT INTO "onnxserve_audit_events" VALUES(34,'2026-11-04 03:00:00.000000','ada@laptop','gate','','flight-delay','3','models:/flight-delay/2','passed without an evaluation','checked: parity, signature; not checked: evaluation: the policy skips it; not checked: robustness: the policy skips it; not checked: budget: the policy skips it','{"tagged": true, "files": "2a0c79c373fc1370722881a02417b72420be9ff91b1568a2a63cea01ec72d71d", "policy": "tag onnxserve.gate.policy of model flight-delay", "policy_digest": "aceb1c0968215bb0", "report": "14e2c9edd43a4e31ae0529bd1b2e072b/gate_report.html", "run_id": "14e2c9edd43a4e31ae0529bd1b2e072b", "report_digest": "96a2b5bdb6349c286cc27a31fab96553efcdaf093556aaddb0ab719e018dcc54", "checks": {"parity": {"state": "passed", "rows": 1894.0}, "signature": {"state": "passed", "changes": 0.0, "breaking": 0.0}, "evaluation": {"state": "skipped"}, "robustness": {"state": "skipped"}, "budget": {"state": "skipped"}}, "act": "61fd445fa8787428"}',NULL,'');
INSERT INTO "onnxserve_audit_events" VALUES(35,'2026-11-04 03:00:00.000000','ben','request','','flight-delay','3','','@champion','it is better','{"subject": {"model": "flight-delay", "version": "3", "place": "@champion", "created": 1796136804318, "files": "2a0c79c373fc1370722881a02417b72420be9ff91b1568a2a63cea01ec72d71d", "policy": "aceb1c0968215bb0"}, "authors": ["ben"]}',NULL,'');
INSERT INTO "onnxserve_audit_events" VALUES(36,'2026-11-04 04:00:00.000000','eva','approve','','flight-delay','3','','@champion','','{"report": "96a2b5bdb6349c286cc27a31fab96553efcdaf093556aaddb0ab719e018dcc54", "verdict": "passed without an evaluation"}',NULL,'');
INSERT INTO "onnxserve_audit_events" VALUES(37,'2026-11-04 05:00:00.000000','leo','approve','','flight-delay','3','','@champion','','{"report": "96a2b5bdb6349c286cc27a31fab96553efcdaf093556aaddb0ab719e018dcc54", "verdict": "passed without an evaluation", "complete": {"model": "flight-delay", "version": "3", "place": "@champion", "created": 1796136804318, "files": "2a0c79c373fc1370722881a02417b72420be9ff91b1568a2a63cea01ec72d71d", "policy": "aceb1c0968215bb0"}}',NULL,'');
INSERT INTO "onnxserve_audit_events" VALUES(38,'2026-11-04 05:00:00.000000','ben','register','','flight-delay','4','','','','{"created": 1796136817085, "authors": ["ben"]}',NULL,'');
INSERT INTO "onnxserve_audit_events" VALUES(39,'2026-11-04 05:00:00.000000','ada@laptop','gate','','flight-delay','4','models:/flight-delay/2','passed without an evaluation','checked: parity, signature; not checked: evaluation: the policy skips it; not checked: robustness: the policy skips it; not checked: budget: the policy skips it','{"tagged": true, "files": "d8f57c97aafb7453fc0ea6099c62135f2c5352978b2d4b9ca1bfd34d3b188fd1", "policy": "tag onnxserve.gate.policy of model flight-delay", "policy_digest": "aceb1c0968215bb0", "report": "fdff337b872b4748834b36ba5d0f2b22/gate_report.html", "run_id": "fdff337b872b4748834b36ba5d0f2b22", "report_digest": "e1a2b30332063d4de4310b998221dfe389c735e5020639694ee1c130c5b36a9e", "checks": {"parity": {"state": "passed", "rows": 1894.0}, "signature": {"state": "passed", "changes": 0.0, "breaking": 0.0}, "evaluation": {"state": "skipped"}, "robustness": {"state": "skipped"}, "budget": {"state": "skipped"}}, "act": "4717e725b02ca286"}',NULL,'');
INSERT INTO "onnxserve_audit_events" VALUES(40,'2026-11-04 05:00:00.000000','ben','request','','flight-delay','4','','@champion','it is better','{"subject": {"model": "flight-delay", "version": "4", "place": "@champion", "created": 1796136817085, "files": "d8f57c97aafb7453fc0ea6099c62135f2c5352978b2d4b9ca1bfd34d3b188fd1", "policy": "aceb1c0968215bb0"}, "authors": ["ben"]}',NULL,'');
INSERT INTO "onnxserve_audit_events" VALUES(41,'2026-11-04 06:00:00.000000','eva','approve','','flight-delay','4','','@champion','','{"report": "e1a2b30332063d4de4310b998221dfe389c735e5020639694ee1c130c5b36a9e", "verdict": "passed without an evaluation"}',NULL,'');
INSERT INTO "onnxserve_audit_events" VALUES(42,'2026-11-04 06:00:00.000000','ada@laptop','promote','','flight-delay','3','version 2 in @champion','version 3 in @champion','checked: parity, signature; not checked: evaluation: the policy skips it; not checked: robustness: the policy skips it; not checked: budget: the policy skips it','{"to": "@champion", "gate": "passed without an evaluation", "report": "14e2c9edd43a4e31ae0529bd1b2e072b/gate_report.html", "moved": {"place": "@champion", "before": "2"}, "act": "64b668847b01e537"}',NULL,'');
INSERT INTO "onnxserve_audit_events" VALUES(43,'2026-11-04 06:00:00.000000','ada@laptop','promote','','flight-delay','2','','version 2 in Staging','the policy does not gate Staging','{"to": "Staging", "gate": "not asked", "report": "", "moved": {"place": "Staging", "before": ""}, "act": "554109ea787f989e"}',NULL,'');
INSERT INTO "onnxserve_audit_events" VALUES(44,'2026-11-04 06:00:00.000000','eva','alias','','flight-delay','2','','@champion','','{"moved": {"place": "@champion", "before": "", "files": "d8f57c97aafb7453fc0ea6099c62135f2c5352978b2d4b9ca1bfd34d3b188fd1"}}',NULL,'');
INSERT INTO "onnxserve_audit_events" VALUES(45,'2026-11-04 06:00:00.000000','eva','alias','','flight-delay','3','','@champion','','{"moved": {"place": "@champion", "before": "", "files": "2a0c79c373fc1370722881a02417b72420be9ff91b1568a2a63cea01ec72d71d"}}',NULL,'');
INSERT INTO "onnxserve_audit_events" VALUES(46,'2026-11-04 06:00:00.000000','eva','transition','','flight-delay','1','','Archived','','{"moved": {"place": "Archived", "before": "", "files": "ced2271aa765b1f0af660cdd088744eac0d5624e5b689e53ee1fb95c4cd2e606"}}',NULL,'');
INSERT INTO "onnxserve_audit_events" VALUES(47,'2026-11-04 06:00:00.000000','ada@laptop','create','everything','','','','champion: models:/flight-delay@champion (90 %), challenger: models:/flight-delay/2 (10 %), candidate: models:/flight-delay/3 (shadow)','','{"spec": "apiVersion: onnxserve/v1\nname: everything\nvariants:\n  champion:\n    model: models:/flight-delay@champion\n    weight: 90\n    allow_pyfunc: true\n    convert: never\n  challenger:\n    model: models:/flight-delay/2\n    weight: 10\n  candidate:\n    model: models:/flight-delay/3\n    weight: 0\n    shadow: true\nserver:\n  host: 0.0.0.0\n  port: 8080\n  api_keys: true\n  jwt_issuer: https://login.example\n  jwt_audience: flights\n  insecure: true\n  grpc_port: 8081\n  metrics_port: 9090\n  workers: 2\n  threads: 8\n  pyfunc_env: uv\n  worker_class: gthread\n  certfile: flights-tls/tls.crt\n  keyfile: flights-tls/tls.key\n  ca_certs: flights-tls/ca.crt\n  device: cuda\n  device_ids:\n  - 0\n  - 1\n  provider_options:\n    gpu_mem_limit: 2147483648\n    arena_extend_strategy: kSameAsRequested\n    cudnn_conv_algo_search: HEURISTIC\n    use_tf32: false\n    enable_cuda_graph: true\n  intra_op_num_threads: 2\n  max_worker_memory_bytes: 1073741824\n  model_memory: 4GiB\n  model_disk: 20GiB\n  max_body_bytes: 1048576\n  max_text_characters: 50000\n  request_timeout_seconds: 30\n  graceful_timeout_seconds: 20\n  v2_names: mlserver\n  model_control_mode: explicit\n  allowed_hosts:\n  - flights.svc\n  - models.example\n  max_batch_size: 64\n  preferred_batch_size:\n  - 8\n  - 32\n  max_queue_delay_microseconds: 1000\n  max_queue_size: 256\n  default_timeout_microseconds: 500000\n  max_concurrent_requests: 16\n  rate_limit: 100/minute\n  rate_limit_header: x-customer\n  response_cache_bytes: 4194304\n  explain_max_rows: 10\n  max_spool_bytes: 67108864\n  response_cache_seconds: 60\n  jobs:\n    max_jobs: 4\n    key_share: 0.25\n    workers: 2\n    max_upload_bytes: 1048576\n    max_rows: 1000000\n    max_file_bytes: 67108864\n    max_memory: 4GiB\n    timeout: 30m\n    uris:\n    - s3://lake/in/\n    keep: 2d\n    max_kept_bytes: 268435456\ncontainer:\n  image: registry.example/onnxserve:gpu\n  cpus: 1.5\n  memory_bytes: 2147483648\n  environment:\n    ONNXSERVE_LOG_LEVEL: debug\n  secrets:\n    AWS_SECRET_ACCESS_KEY: flights/secret\n  secret_files:\n    GOOGLE_APPLICATION_CREDENTIALS: flights/google.json\n  restart: on-failure\n  pids: 256\n  network: models\ncapture:\n  fraction: 0.5\n  max_rows_per_request: 500\n  drop:\n  - output.probabilities\n  mask:\n  - carrier\n  keys:\n  - booking\n  retention: 400d\n  sinks:\n    audit:\n      url: https://events.example/rows\n      authorization: ONNXSERVE_SINK_AUDIT\n      batch: 10\n      kserve: true\nserve:\n  steps: \"def before(request):\\n    return request\\n\"\n  signature: signed\nmonitors:\n  inputs:\n    schedule: 15 6 * * *\n    time_zone: Europe/Berlin\n    grace: 10m\n    reference: rolling:7d\n    min_rows: 300\n    false_alarm_rate: 0.02\n    season: 7d\n    columns:\n    - distance\n    - hour\n    segment_by:\n    - carrier\n    alert_on: change\n    consecutive: 2\n    alert:\n    - oncall\n  answers:\n    every: 1h\n    reference: window:2026-10-01/2026-10-08\n    independent_rows: true\n    columns:\n    - prediction\n  quality:\n    reference: dataset:s3://flights/reference.parquet\n    require:\n    - missing(distance)<=0.1\n  labels:\n    kind: performance\n    require:\n    - accuracy>=0.8\n    - log_loss<=0.6\n    labels_within: 2d\n    labels: reported\n    estimate: decides\n    retrain:\n      project: https://git.example/flights\n      entry_point: retrain\n      mode: incremental\n      sample:\n        recent: 30d\n        fraction: 0.5\n        stratify: hour\n        weight: 14d\n      parameters:\n        depth: 3.0\n        loss: log\n      env_manager: uv\n      schedule: 0 3 * * 1\n      cooldown: 2d\n      max_runs: 4\n      timeout: 2h\n      then: rollout\n      steps: 5,50,100\n      step_every: 10m\n      min_requests: 500\n  shadow:\n    kind: shadow\n    require:\n    - disagreement(candidate)<=0.05\n  level:\n    kind: service_level\n    every: 1h\n    require:\n    - p99<=0.2\n    - error_rate<=1%\nalarms:\n  false_per_year: 4.0\n  min_effect: 0.02\nsticky:\n  header: x-user-id\nguard:\n  then: refuse\nkubernetes:\n  replicas: 2\n  max_replicas: 6\n  target_cpu_percent: 60\n  requests_per_second: 200.0\n  prometheus_url: http://prometheus.example:9090\n  gpus: 2\n  host: flights.example\n  ingress_class: nginx\n  tls_secret: flights-tls\n  allowed_namespaces:\n  - web\n  service_monitor: true\n  service_monitor_key: flights/metrics\n  service_monitor_labels:\n  - release=monitoring\n  service_account: flights\n  image_pull_secrets:\n  - registry\n  node_selector:\n  - pool=gpu\n  tolerations:\n  - dedicated=ml:NoSchedule\n  force_conflicts: true\nproxy:\n  replicas: 3\n  hot: 1\n  hot_requests_per_second: 50\n  image: registry.example/nginx:1.28\nrequire: gate=passed\n", "unapproved": [{"model_uri": "models:/flight-delay/2", "model": "flight-delay", "version": "2", "places": ["@champion"], "share": 10.0, "since": "2026-11-04T06:00:00+00:00", "until": "2026-11-04T07:00:00+00:00"}]}',NULL,'');
CREATE TABLE onnxserve_audit_leaves (
	place BIGINT NOT NULL,
	entry TEXT NOT NULL,
	PRIMARY KEY (place)
);
CREATE TABLE onnxserve_audit_tree (
	id INTEGER NOT NULL,
	checkpoint TEXT NOT NULL,
	edge TEXT NOT NULL,
	PRIMARY KEY (id)
);
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
  port: 20257
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
    convert: never
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
  pyfunc_env: uv
  worker_class: gthread
  certfile: flights-tls/tls.crt
  keyfile: flights-tls/tls.key
  ca_certs: flights-tls/ca.crt
  device: cuda
  device_ids:
  - 0
  - 1
  provider_options:
    gpu_mem_limit: 2147483648
    arena_extend_strategy: kSameAsRequested
    cudnn_conv_algo_search: HEURISTIC
    use_tf32: false
    enable_cuda_graph: true
  intra_op_num_threads: 2
  max_worker_memory_bytes: 1073741824
  model_memory: 4GiB
  model_disk: 20GiB
  max_body_bytes: 1048576
  max_text_characters: 50000
  request_timeout_seconds: 30
  graceful_timeout_seconds: 20
  v2_names: mlserver
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
  jobs:
    max_jobs: 4
    key_share: 0.25
    workers: 2
    max_upload_bytes: 1048576
    max_rows: 1000000
    max_file_bytes: 67108864
    max_memory: 4GiB
    timeout: 30m
    uris:
    - s3://lake/in/
    keep: 2d
    max_kept_bytes: 268435456
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
  sinks:
    audit:
      url: https://events.example/rows
      authorization: ONNXSERVE_SINK_AUDIT
      batch: 10
      kserve: true
serve:
  steps: "def before(request):\n    return request\n"
  signature: signed
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
    alert_on: change
    consecutive: 2
    alert:
    - oncall
  answers:
    every: 1h
    reference: window:2026-10-01/2026-10-08
    independent_rows: true
    columns:
    - prediction
  quality:
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
  min_effect: 0.02
sticky:
  header: x-user-id
guard:
  then: refuse
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
  service_monitor_labels:
  - release=monitoring
  service_account: flights
  image_pull_secrets:
  - registry
  node_selector:
  - pool=gpu
  tolerations:
  - dedicated=ml:NoSchedule
  force_conflicts: true
proxy:
  replicas: 3
  hot: 1
  hot_requests_per_second: 50
  image: registry.example/nginx:1.28
require: gate=passed
','2026-11-04 06:00:00.000000','2026-11-04 06:00:00.000000','[{"model_uri": "models:/flight-delay/2", "model": "flight-delay", "version": "2", "places": ["@champion"], "share": 10.0, "since": "2026-11-04T06:00:00+00:00", "until": "2026-11-04T07:00:00+00:00"}]');
CREATE TABLE onnxserve_inbox (
	number INTEGER NOT NULL,
	endpoint VARCHAR(63) NOT NULL,
	id VARCHAR(255) NOT NULL,
	time DATETIME NOT NULL,
	request BLOB,
	response BLOB,
	size INTEGER NOT NULL,
	conflicts INTEGER NOT NULL,
	received_at DATETIME NOT NULL,
	PRIMARY KEY (number),
	CONSTRAINT ux_onnxserve_inbox UNIQUE (endpoint, id)
);
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
INSERT INTO "onnxserve_monitor_windows" VALUES(1,'flights','daily','2026-11-02 00:00:00.000000','2026-11-03 00:00:00.000000',1,0,'judged','no drift','no column differs from the reference more than its own windows do (p = 0.559 compared with 90 windows of random rows); the clock of agent vm-eb4a75db22e2 is an hour or more ahead: its rows are not waited for',240,240,'b4af1889dcead283efedd8623240fb2b',0,NULL,'516afdd61e174f37a423812e2eacadbf','','{"rows": 240.0, "reference_rows": 600.0, "is_drift": 0.0, "p_value": 0.5590504169007219, "statistic": 2.4431569489889085, "threshold": 3.524885571654074, "blocks": 90.0, "false_alarm_rate": 0.05, "share_of_drifted_columns": 0.0, "drift_score/distance": 2.4431569489889085, "drift_distance/distance": 0.190955529864474, "missing/distance": 0.0, "reference_missing/distance": 0.0016666666666666668, "drift_score/hour": 1.7839014723325661, "drift_distance/hour": 0.14506749765603782, "missing/hour": 0.0, "reference_missing/hour": 0.0, "drift_score/prediction": 1.8194905270062336, "drift_distance/prediction": 0.06105182775971242, "missing/prediction": 0.0, "reference_missing/prediction": 0.0, "drift_score/output.probabilities.1": 2.1198378989255766, "drift_distance/output.probabilities.1": 0.1341630354361215, "missing/output.probabilities.1": 0.0, "reference_missing/output.probabilities.1": 0.0, "drift_score/output.probabilities.0": 2.1198378989255766, "drift_distance/output.probabilities.0": 0.1341630389754946, "missing/output.probabilities.0": 0.0, "reference_missing/output.probabilities.0": 0.0, "drift_score/relations between columns": 1.6025533298611296, "drift_distance/relations between columns": 0.06280563404103141, "drift_score/carrier": 0.6980075856199345, "drift_distance/carrier": 0.024875778829525005, "missing/carrier": 0.0, "reference_missing/carrier": 0.0}','{"basis": "c4d50f9ce51fbdf47df44cbf1c8ca823", "levels": {"number of rows/rows": 5.480638923341991, "relations between columns/_relations.0": 0.25997505419671757, "relations between columns/_relations.1": -0.3090077641105032, "relations between columns/_relations.2": 0.4932013672545297, "relations between columns/_relations.3": -0.17479749611073944, "relations between columns/_relations.4": 0.3584150420885846, "relations between columns/_relations.5": -0.8029575180579072, "relations between columns/_relations.6": -0.5066826280837715, "relations between columns/_relations.7": -0.8477828101730763, "carrier/missing": 0.0, "carrier/new": 0.0, "carrier/frequent": 0.375, "carrier/second": 0.29583333333333334, "carrier/distance": 0.024875778829525005, "distance/missing": 0.0, "distance/level": 939.9712652241327, "distance/spread": 5.711401287317193, "distance/mean": 939.4791666666666, "distance/outside": 0.0, "distance/mode": -0.3, "distance/distance": 0.190955529864474, "hour/missing": 0.0, "hour/level": 11.141666666666667, "hour/spread": 1.9574753300531684, "hour/mean": 11.141666666666666, "hour/outside": 0.0, "hour/mode": -0.24588439253980443, "hour/distance": 0.14506749765603782, "output.probabilities.0/missing": 0.0, "output.probabilities.0/level": 0.5108419554833219, "output.probabilities.0/spread": -0.9674962422426693, "output.probabilities.0/mean": 0.510851520129169, "output.probabilities.0/outside": 0.025, "output.probabilities.0/mode": -0.12908476330524765, "output.probabilities.0/distance": 0.1341630389754946, "output.probabilities.1/missing": 0.0, "output.probabilities.1/level": 0.4891580467047154, "output.probabilities.1/spread": -0.9674962433536416, "output.probabilities.1/mean": 0.48914848618636214, "output.probabilities.1/outside": 0.025, "output.probabilities.1/mode": -0.13467001754581753, "output.probabilities.1/distance": 0.1341630354361215, "prediction/missing": 0.0, "prediction/new": 0.0, "prediction/frequent": 0.5, "prediction/second": 0.5, "prediction/distance": 0.06105182775971242}, "alarms": [], "shifts": {}, "accepted": [], "outcomes": {"distance": ["distribution", "no drift", 2.4431569489889085, 3.524885571654074], "output.probabilities.0": ["range", "no drift", 2.1198378989255766, 5.900046025241855], "output.probabilities.1": ["range", "no drift", 2.1198378989255766, 5.900046025241855], "prediction": ["distribution", "no drift", 1.8194905270062336, 3.640055264555335], "hour": ["distribution", "no drift", 1.7839014723325661, 3.542986433611288], "relations between columns": ["distribution", "no drift", 1.6025533298611296, 3.546093529217035], "carrier": ["distribution", "no drift", 0.6980075856199345, 3.5886797435883557], "": ["distribution", "no drift", 2.4431569489889085, 3.524885571654074]}, "effects": {}, "limits": {}}','2026-11-04 01:00:00.000000','2026-11-04 01:00:00.000000');
INSERT INTO "onnxserve_monitor_windows" VALUES(2,'flights','daily','2026-11-03 00:00:00.000000','2026-11-04 00:00:00.000000',1,0,'judged','drift','distance: out of range 0.4% → 100.0%, more above; changes the probability of on time by -0.058 on average, and the class of 5.4% of the rows; since 3 November 2026; the clock of agent vm-eb4a75db22e2 is an hour or more ahead: its rows are not waited for',240,240,'391cc00e8571722ede0de3a526161d82',0,NULL,'9942db41e22c4328a68b83eff3729cb7','','{"rows": 240.0, "reference_rows": 600.0, "is_drift": 1.0, "p_value": 3.3567273268356546e-09, "statistic": 90.15742463909537, "threshold": 3.524885571654074, "blocks": 90.0, "false_alarm_rate": 0.05, "share_of_drifted_columns": 0.16666666666666666, "drift_score/distance": 104.96034609989306, "drift_distance/distance": 6.910374033934819, "missing/distance": 0.0, "reference_missing/distance": 0.0016666666666666668, "drift_score/relations between columns": 11.337993185619334, "drift_distance/relations between columns": 0.5469822027999883, "drift_score/hour": 1.703696267850602, "drift_distance/hour": 0.13666279342675947, "missing/hour": 0.0, "reference_missing/hour": 0.0, "drift_score/carrier": 1.6367209225550579, "drift_distance/carrier": 0.06663265842352735, "missing/carrier": 0.0, "reference_missing/carrier": 0.0, "drift_score/output.probabilities.0": 2.542749162749353, "drift_distance/output.probabilities.0": 0.035363663036464696, "missing/output.probabilities.0": 0.0, "reference_missing/output.probabilities.0": 0.0, "drift_score/output.probabilities.1": 2.542749162749353, "drift_distance/output.probabilities.1": 0.035363663900337114, "missing/output.probabilities.1": 0.0, "reference_missing/output.probabilities.1": 0.0, "drift_score/prediction": 0.08730187609026437, "drift_distance/prediction": 0.0028620256048193736, "missing/prediction": 0.0, "reference_missing/prediction": 0.0}','{"basis": "c4d50f9ce51fbdf47df44cbf1c8ca823", "levels": {"number of rows/rows": 5.480638923341991, "relations between columns/_relations.0": 0.2570989873453116, "relations between columns/_relations.1": -0.7397899333759875, "relations between columns/_relations.2": 0.42635501121911656, "relations between columns/_relations.3": -0.22296219627673822, "relations between columns/_relations.4": 0.33749188521100765, "relations between columns/_relations.5": -1.6598468261179102, "relations between columns/_relations.6": -0.6129001461555692, "relations between columns/_relations.7": -1.0609538410316386, "carrier/missing": 0.0, "carrier/new": 0.0, "carrier/frequent": 0.30416666666666664, "carrier/second": 0.32083333333333336, "carrier/distance": 0.06663265842352735, "distance/missing": 0.0, "distance/level": 2841.941227364833, "distance/spread": 5.720082465591601, "distance/mean": 2841.80375, "distance/outside": 1.0, "distance/mode": -0.2962442322141823, "distance/distance": 6.910374033934819, "hour/missing": 0.0, "hour/level": 11.1875, "hour/spread": 1.947631777733568, "hour/mean": 11.1875, "hour/outside": 0.0, "hour/mode": -0.3, "hour/distance": 0.13666279342675947, "output.probabilities.0/missing": 0.0, "output.probabilities.0/level": 0.5705705424151049, "output.probabilities.0/spread": -0.9817200915084129, "output.probabilities.0/mean": 0.5707244492679213, "output.probabilities.0/outside": 0.029166666666666667, "output.probabilities.0/mode": -0.12908476330524765, "output.probabilities.0/distance": 0.035363663036464696, "output.probabilities.1/missing": 0.0, "output.probabilities.1/level": 0.4294294591650924, "output.probabilities.1/spread": -0.9817200973761029, "output.probabilities.1/mean": 0.42927555021694086, "output.probabilities.1/outside": 0.029166666666666667, "output.probabilities.1/mode": -0.13467001754581753, "output.probabilities.1/distance": 0.035363663900337114, "prediction/missing": 0.0, "prediction/new": 0.0, "prediction/frequent": 0.575, "prediction/second": 0.425, "prediction/distance": 0.0028620256048193736}, "alarms": ["distance"], "shifts": {}, "accepted": [], "outcomes": {"distance": ["range", "drift", 104.96034609989306, 5.631817434758355], "relations between columns": ["distribution", "no drift", 11.337993185619334, 3.436410648611123], "output.probabilities.0": ["range", "no drift", 2.542749162749353, 5.900046025241855], "output.probabilities.1": ["range", "no drift", 2.542749162749353, 5.900046025241855], "hour": ["distribution", "no drift", 1.703696267850602, 3.542986433611288], "carrier": ["distribution", "no drift", 1.6367209225550579, 3.7491415936208123], "prediction": ["distribution", "no drift", 0.08730187609026437, 3.640055264555335], "": ["distribution", "drift", 90.15742463909537, 3.524885571654074]}, "effects": {"distance": -0.05807572606427129}, "limits": {}}','2026-11-04 01:00:00.000000','2026-11-04 01:00:00.000000');
INSERT INTO "onnxserve_monitor_windows" VALUES(3,'flights','accuracy','2026-11-02 00:00:00.000000','2026-11-03 00:00:00.000000',1,0,'judged','kept','accuracy: 0.9333 on 240 rows (worth 44 independent rows), 0.6805 to 0.9978 (Clopper-Pearson, confidence 0.9997); required is accuracy>=0.6; the clock of agent vm-eb4a75db22e2 is an hour or more ahead: its rows are not waited for',240,240,'08f7d0ec9f7a5df0f99e5d714c95a852',0,NULL,'b719d9def6c24e2da57dda96c8b4a524','','{"rows": 240.0, "labelled_rows": 240.0, "labelled_share": 1.0, "accuracy": 0.9333333333333333, "accuracy_low": 0.680463401290899, "accuracy_high": 0.9978392173939131, "f1": 0.9316239316239316, "f1_low": 0.736763507674434, "f1_high": 1.0551395986963725, "precision": 0.9083333333333333, "precision_low": 0.5370653695014105, "precision_high": 0.9989070884424348, "recall": 0.956140350877193, "recall_low": 0.6712870095514396, "recall_high": 0.9998781839999507, "roc_auc": 0.9860763018657756, "roc_auc_low": 0.9252426744414284, "roc_auc_high": 0.9975383875958799, "log_loss": 0.2074671617428097, "log_loss_low": 0.12779313991685143, "log_loss_high": 0.28422040391769177, "brier": 0.05666854417872123, "brier_low": 0.025914567198808063, "brier_high": 0.08888631226091895}','{"basis": "labels: None", "levels": {"accuracy/metric": 0.9333333333333333, "/labelled": 1.0, "late/label": 0.525, "late/predicted": 0.5, "on time/label": 0.475, "on time/predicted": 0.5, "/rows": 240.0}, "alarms": [], "shifts": {}, "accepted": [], "outcomes": {"accuracy": ["criterion", "kept", 0.9333333333333333, 0.6]}, "effects": {}, "limits": {}}','2026-11-04 01:00:00.000000','2026-11-04 01:00:00.000000');
INSERT INTO "onnxserve_monitor_windows" VALUES(4,'flights','accuracy','2026-11-03 00:00:00.000000','2026-11-04 00:00:00.000000',1,0,'judged','kept','accuracy: 0.9125 on 240 rows (worth 73 independent rows), 0.7261 to 0.987 (Clopper-Pearson, confidence 0.9997); required is accuracy>=0.6; the clock of agent vm-eb4a75db22e2 is an hour or more ahead: its rows are not waited for',240,240,'926d5f041d2167dc68010a1ee70b345b',0,NULL,'c00ebdc1045c481bba064acd0643b820','','{"rows": 240.0, "labelled_rows": 240.0, "labelled_share": 1.0, "accuracy": 0.9125, "accuracy_low": 0.7261251082040698, "accuracy_high": 0.9869775721933063, "f1": 0.9032258064516129, "f1_low": 0.7292711969949436, "f1_high": 1.01313862089729, "precision": 0.9607843137254902, "precision_low": 0.6256429616133388, "precision_high": 0.9999902235951704, "recall": 0.8521739130434782, "recall_low": 0.5519277932183282, "recall_high": 0.9833983464985465, "roc_auc": 0.9878260869565217, "roc_auc_low": 0.8512172998912974, "roc_auc_high": 0.9991318191458585, "log_loss": 0.21270950030760372, "log_loss_low": 0.10985359719349524, "log_loss_high": 0.33981454861034294, "brier": 0.0593036360191258, "brier_low": 0.018119209402981694, "brier_high": 0.11168228769535024}','{"basis": "labels: None", "levels": {"accuracy/metric": 0.9125, "/labelled": 1.0, "late/label": 0.5208333333333334, "late/predicted": 0.575, "on time/label": 0.4791666666666667, "on time/predicted": 0.425, "/rows": 240.0}, "alarms": [], "shifts": {}, "accepted": [], "outcomes": {"accuracy": ["criterion", "kept", 0.9125, 0.6]}, "effects": {}, "limits": {}}','2026-11-04 01:00:00.000000','2026-11-04 01:00:00.000000');
INSERT INTO "onnxserve_monitor_windows" VALUES(5,'flights','level','2026-11-02 00:00:00.000000','2026-11-03 00:00:00.000000',1,0,'judged','not judged','the window has 24 requests; min_rows is 30; the clock of agent vm-eb4a75db22e2 is an hour or more ahead: its rows are not waited for',24,240,'b4af1889dcead283efedd8623240fb2b',0,NULL,'a8fa828f8c3f410a925fee01de58410f','','{"rows": 24.0}','{"basis": "", "levels": {}, "alarms": [], "shifts": {}, "accepted": [], "outcomes": {}, "effects": {}, "limits": {}}','2026-11-04 01:00:00.000000','2026-11-04 01:00:00.000000');
INSERT INTO "onnxserve_monitor_windows" VALUES(6,'flights','level','2026-11-03 00:00:00.000000','2026-11-04 00:00:00.000000',1,0,'judged','not judged','the window has 24 requests; min_rows is 30; the clock of agent vm-eb4a75db22e2 is an hour or more ahead: its rows are not waited for',24,240,'391cc00e8571722ede0de3a526161d82',0,NULL,'7f8fbfcb3bb743d7a5770ec8ffa1ad59','','{"rows": 24.0}','{"basis": "", "levels": {}, "alarms": [], "shifts": {}, "accepted": [], "outcomes": {}, "effects": {}, "limits": {}}','2026-11-04 01:00:00.000000','2026-11-04 01:00:00.000000');
INSERT INTO "onnxserve_monitor_windows" VALUES(7,'flights','daily','2026-11-03 00:00:00.000000','2026-11-04 00:00:00.000000',2,1,'judged','drift','distance: out of range 0.4% → 100.0%, more above; changes the probability of on time by -0.058 on average, and the class of 5.4% of the rows; since 3 November 2026',240,240,'391cc00e8571722ede0de3a526161d82',0,NULL,'984183add4d64da3ae9268cbac165447','','{"rows": 240.0, "reference_rows": 600.0, "is_drift": 1.0, "p_value": 3.3567273268356546e-09, "statistic": 90.15742463909537, "threshold": 3.524885571654074, "blocks": 90.0, "false_alarm_rate": 0.05, "share_of_drifted_columns": 0.16666666666666666, "drift_score/distance": 104.96034609989306, "drift_distance/distance": 6.910374033934819, "missing/distance": 0.0, "reference_missing/distance": 0.0016666666666666668, "drift_score/relations between columns": 11.337993185619334, "drift_distance/relations between columns": 0.5469822027999883, "drift_score/hour": 1.703696267850602, "drift_distance/hour": 0.13666279342675947, "missing/hour": 0.0, "reference_missing/hour": 0.0, "drift_score/carrier": 1.6367209225550579, "drift_distance/carrier": 0.06663265842352735, "missing/carrier": 0.0, "reference_missing/carrier": 0.0, "drift_score/output.probabilities.0": 2.542749162749353, "drift_distance/output.probabilities.0": 0.035363663036464696, "missing/output.probabilities.0": 0.0, "reference_missing/output.probabilities.0": 0.0, "drift_score/output.probabilities.1": 2.542749162749353, "drift_distance/output.probabilities.1": 0.035363663900337114, "missing/output.probabilities.1": 0.0, "reference_missing/output.probabilities.1": 0.0, "drift_score/prediction": 0.08730187609026437, "drift_distance/prediction": 0.0028620256048193736, "missing/prediction": 0.0, "reference_missing/prediction": 0.0}','{"basis": "c4d50f9ce51fbdf47df44cbf1c8ca823", "levels": {"number of rows/rows": 5.480638923341991, "relations between columns/_relations.0": 0.2570989873453116, "relations between columns/_relations.1": -0.7397899333759875, "relations between columns/_relations.2": 0.42635501121911656, "relations between columns/_relations.3": -0.22296219627673822, "relations between columns/_relations.4": 0.33749188521100765, "relations between columns/_relations.5": -1.6598468261179102, "relations between columns/_relations.6": -0.6129001461555692, "relations between columns/_relations.7": -1.0609538410316386, "carrier/missing": 0.0, "carrier/new": 0.0, "carrier/frequent": 0.30416666666666664, "carrier/second": 0.32083333333333336, "carrier/distance": 0.06663265842352735, "distance/missing": 0.0, "distance/level": 2841.941227364833, "distance/spread": 5.720082465591601, "distance/mean": 2841.80375, "distance/outside": 1.0, "distance/mode": -0.2962442322141823, "distance/distance": 6.910374033934819, "hour/missing": 0.0, "hour/level": 11.1875, "hour/spread": 1.947631777733568, "hour/mean": 11.1875, "hour/outside": 0.0, "hour/mode": -0.3, "hour/distance": 0.13666279342675947, "output.probabilities.0/missing": 0.0, "output.probabilities.0/level": 0.5705705424151049, "output.probabilities.0/spread": -0.9817200915084129, "output.probabilities.0/mean": 0.5707244492679213, "output.probabilities.0/outside": 0.029166666666666667, "output.probabilities.0/mode": -0.12908476330524765, "output.probabilities.0/distance": 0.035363663036464696, "output.probabilities.1/missing": 0.0, "output.probabilities.1/level": 0.4294294591650924, "output.probabilities.1/spread": -0.9817200973761029, "output.probabilities.1/mean": 0.42927555021694086, "output.probabilities.1/outside": 0.029166666666666667, "output.probabilities.1/mode": -0.13467001754581753, "output.probabilities.1/distance": 0.035363663900337114, "prediction/missing": 0.0, "prediction/new": 0.0, "prediction/frequent": 0.575, "prediction/second": 0.425, "prediction/distance": 0.0028620256048193736}, "alarms": ["distance"], "shifts": {}, "accepted": ["distance"], "outcomes": {"distance": ["range", "drift", 104.96034609989306, 5.631817434758355], "relations between columns": ["distribution", "no drift", 11.337993185619334, 3.436410648611123], "output.probabilities.0": ["range", "no drift", 2.542749162749353, 5.900046025241855], "output.probabilities.1": ["range", "no drift", 2.542749162749353, 5.900046025241855], "hour": ["distribution", "no drift", 1.703696267850602, 3.542986433611288], "carrier": ["distribution", "no drift", 1.6367209225550579, 3.7491415936208123], "prediction": ["distribution", "no drift", 0.08730187609026437, 3.640055264555335], "": ["distribution", "drift", 90.15742463909537, 3.524885571654074]}, "effects": {"distance": -0.05807572606427129}, "limits": {}}','2026-11-04 02:00:00.000000','2026-11-04 02:00:00.000000');
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
INSERT INTO "onnxserve_retrainings" VALUES(1,'flights','daily','flight-delay','{"kind": "alarm", "monitor": "daily", "monitor_kind": "drift", "window": "2026-11-03/2026-11-04", "revision": 1, "verdict": "drift", "version": "1", "run_id": "9942db41e22c4328a68b83eff3729cb7", "report": "run 9942db41e22c4328a68b83eff3729cb7", "why": "monitor daily, 2026-11-03/2026-11-04: drift: distance: out of range 0.4% \u2192 100.0%, more above; changes the probability of on time by -0.058 on average, and the class of 5.4% of the rows; since 3 November 2026"}','{"endpoint": "flights", "model": "flight-delay", "base_version": "1", "project": "/srv/onnxserve/project", "entry_point": "train", "mode": "full", "env_manager": "local", "timeout": 21600.0, "then": "propose", "steps": "10,50,100", "step_every": "5m", "every": "1d", "window": "2026-11-03/2026-11-04", "parameters": {}, "min_requests": 100, "actor": "controller@laptop", "sample": null}','proposed','2ab9a1ac2d74438ca002df62108a301e','3',NULL,'','the version passed its gate without an evaluation (checked: parity, signature; not checked: evaluation: the policy skips it; not checked: robustness: the policy skips it; not checked: budget: the policy skips it); `onnxserve rollout start flights --to 3` rolls it out','{"attempt": 1, "host": "laptop e324aee4", "rows": 480, "data_digest": "95164e72b2820f7af4f8000a839f080cd8fc47a73daaaa20876a14c4b80c08d1", "held_out_rows": 0, "window": "2026-11-03/2026-11-04", "started_at": "2026-11-04T02:00:00+00:00", "gate": "passed without an evaluation", "gate_reason": "checked: parity, signature; not checked: evaluation: the policy skips it; not checked: robustness: the policy skips it; not checked: budget: the policy skips it", "gate_report": "31fc00f6fc834e83a4f205670f5d567b/gate_report.html", "against": "1", "gated_at": "2026-11-04T02:00:00+00:00", "compared": true}','2026-11-04 01:00:00.000000','2026-11-04 02:00:00.000003','2026-11-04 02:00:00.000000');
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
INSERT INTO "onnxserve_rollouts" VALUES(1,'flights','{"endpoint": "flights", "main": "champion", "candidate": "candidate", "shadow": "", "to_uri": "models:/flight-delay/2", "model": "flight-delay", "version": "2", "before_uri": "models:/flight-delay@champion", "before_version": "1", "kind": "alias", "selector": "champion", "steps": [50, 100], "every": 1.0, "abort_on": "error_rate>20%", "level": 0.05, "min_requests": 5, "actor": "ada@laptop", "why": "it is new"}','promoted',1,'2026-11-04 02:00:00.000000','{"elapsed": 0.169, "current": {"requests": 2.0, "errors": 0.0}, "candidate": {"requests": 23.0, "errors": 0.0}, "criteria": {"error_rate>20%": {"figures": "0.00% of 23 requests to version 2 failed, 0.00% of 2 to version 1", "log_evidence": -2.738, "log_evidence_needed": 4.382}}, "trace": [[0.0, 0, {"error_rate>20%": 0.0}], [0.0, 0, {"error_rate>20%": -0.1217}], [0.0, 0, {"error_rate>20%": -0.196}], [0.0, 0, {"error_rate>20%": -0.2505}], [0.0, 0, {"error_rate>20%": -0.2505}], [0.0, 0, {"error_rate>20%": -0.2947}], [0.0, 1, {"error_rate>20%": 0.0}], [0.0, 1, {"error_rate>20%": -0.2802}], [0.0, 1, {"error_rate>20%": -0.3813}], [0.0, 1, {"error_rate>20%": -0.4427}], [0.0, 1, {"error_rate>20%": -0.5144}], [0.0, 1, {"error_rate>20%": -0.5637}], [0.0, 1, {"error_rate>20%": -0.6248}], [0.0, 1, {"error_rate>20%": -0.6248}], [0.0, 1, {"error_rate>20%": -0.6248}], [0.0, 1, {"error_rate>20%": -0.6248}]], "ledger": {"last": {"flights": {"current": {"requests": 79.0, "errors": 0.0, "timed": {"0.0005": 0.0, "0.001": 24.0, "0.0025": 70.0, "0.005": 77.0, "0.01": 78.0, "0.025": 78.0, "0.05": 79.0, "0.1": 79.0, "0.25": 79.0, "0.5": 79.0, "1.0": 79.0, "2.5": 79.0, "5.0": 79.0, "10.0": 79.0, "inf": 79.0}, "same": 0.0, "different": 0.0, "refused": 0.0}, "candidate": {"requests": 28.0, "errors": 0.0, "timed": {"0.0005": 0.0, "0.001": 0.0, "0.0025": 27.0, "0.005": 28.0, "0.01": 28.0, "0.025": 28.0, "0.05": 28.0, "0.1": 28.0, "0.25": 28.0, "0.5": 28.0, "1.0": 28.0, "2.5": 28.0, "5.0": 28.0, "10.0": 28.0, "inf": 28.0}, "same": 0.0, "different": 0.0, "refused": 0.0}, "shadow": {"requests": 0.0, "errors": 0.0, "timed": {}, "same": 0.0, "different": 0.0, "refused": 0.0}}}, "step": {"current": {"requests": 2.0, "errors": 0.0, "timed": {"0.0005": 0.0, "0.001": 0.0, "0.0025": 2.0, "0.005": 2.0, "0.01": 2.0, "0.025": 2.0, "0.05": 2.0, "0.1": 2.0, "0.25": 2.0, "0.5": 2.0, "1.0": 2.0, "2.5": 2.0, "5.0": 2.0, "10.0": 2.0, "inf": 2.0}, "same": 0.0, "different": 0.0, "refused": 0.0}, "candidate": {"requests": 23.0, "errors": 0.0, "timed": {"0.0005": 0.0, "0.001": 0.0, "0.0025": 23.0, "0.005": 23.0, "0.01": 23.0, "0.025": 23.0, "0.05": 23.0, "0.1": 23.0, "0.25": 23.0, "0.5": 23.0, "1.0": 23.0, "2.5": 23.0, "5.0": 23.0, "10.0": 23.0, "inf": 23.0}, "same": 0.0, "different": 0.0, "refused": 0.0}, "shadow": {"requests": 0.0, "errors": 0.0, "timed": {}, "same": 0.0, "different": 0.0, "refused": 0.0}}, "current": {"all": {"requests": 79.0, "errors": 0.0, "timed": {"0.0005": 0.0, "0.001": 24.0, "0.0025": 70.0, "0.005": 77.0, "0.01": 78.0, "0.025": 78.0, "0.05": 79.0, "0.1": 79.0, "0.25": 79.0, "0.5": 79.0, "1.0": 79.0, "2.5": 79.0, "5.0": 79.0, "10.0": 79.0, "inf": 79.0}, "same": 0.0, "different": 0.0, "refused": 0.0}, "before": {"requests": 77.0, "errors": 0.0, "timed": {"0.0005": 0.0, "0.001": 24.0, "0.0025": 68.0, "0.005": 75.0, "0.01": 76.0, "0.025": 76.0, "0.05": 77.0, "0.1": 77.0, "0.25": 77.0, "0.5": 77.0, "1.0": 77.0, "2.5": 77.0, "5.0": 77.0, "10.0": 77.0, "inf": 77.0}, "same": 0.0, "different": 0.0, "refused": 0.0}}, "tests": {"error_rate>20%": [[-1.1221737758969361, -2.192134135499472, -4.193395806260956, -7.738861442287898, -13.519093292748739, -23.68124659516664, -44.0892200801874], [0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]]}}}','version 2 is served instead of 1',17,'2026-11-04 02:00:00.000000','2026-11-04 02:00:00.000000','2026-11-04 02:00:00.000000');
INSERT INTO "onnxserve_rollouts" VALUES(2,'flights','{"endpoint": "flights", "main": "champion", "candidate": "candidate", "shadow": "candidate-shadow", "to_uri": "models:/flight-delay/1", "model": "flight-delay", "version": "1", "before_uri": "models:/flight-delay@champion", "before_version": "2", "kind": "alias", "selector": "champion", "steps": [50, 100], "every": 3600.0, "abort_on": "error_rate>20%,p99>50x,disagreement>90%", "level": 0.05, "min_requests": 1000, "actor": "ada@laptop", "why": ""}','paused',0,'2026-11-04 02:00:00.000000','{"elapsed": 1.536, "current": {"requests": 23.0, "errors": 0.0}, "candidate": {"requests": 11.0, "errors": 0.0}, "shadow": {"same": 24.0, "different": 0.0}, "criteria": {"error_rate>20%": {"figures": "0.00% of 11 requests to version 1 failed, 0.00% of 23 to version 2", "log_evidence": -1.854, "log_evidence_needed": 4.787}, "p99>50x": {"figures": "not judged: version 2 has too few timed requests", "log_evidence": 0.0, "log_evidence_needed": 4.787}, "disagreement>90%": {"figures": "version 1 answers 0.00% of 24 rows differently from the current version", "log_evidence": -6.799, "log_evidence_needed": 4.787}}, "trace": [[0.0, 0, {"error_rate>20%": 0.0, "p99>50x": 0.0, "disagreement>90%": 0.0}], [0.0, 0, {"error_rate>20%": -0.3873, "p99>50x": 0.0, "disagreement>90%": -1.4203}], [0.0, 0, {"error_rate>20%": -0.3873, "p99>50x": 0.0, "disagreement>90%": -1.4203}]], "ledger": {"last": {"flights": {"current": {"requests": 66.0, "errors": 0.0, "timed": {"0.0005": 0.0, "0.001": 0.0, "0.0025": 58.0, "0.005": 65.0, "0.01": 65.0, "0.025": 66.0, "0.05": 66.0, "0.1": 66.0, "0.25": 66.0, "0.5": 66.0, "1.0": 66.0, "2.5": 66.0, "5.0": 66.0, "10.0": 66.0, "inf": 66.0}, "same": 0.0, "different": 0.0, "refused": 0.0}, "candidate": {"requests": 11.0, "errors": 0.0, "timed": {"0.0005": 0.0, "0.001": 0.0, "0.0025": 9.0, "0.005": 11.0, "0.01": 11.0, "0.025": 11.0, "0.05": 11.0, "0.1": 11.0, "0.25": 11.0, "0.5": 11.0, "1.0": 11.0, "2.5": 11.0, "5.0": 11.0, "10.0": 11.0, "inf": 11.0}, "same": 0.0, "different": 0.0, "refused": 0.0}, "shadow": {"requests": 0.0, "errors": 0.0, "timed": {}, "same": 46.0, "different": 0.0, "refused": 0.0}}}, "step": {"current": {"requests": 23.0, "errors": 0.0, "timed": {"0.0005": 0.0, "0.001": 0.0, "0.0025": 20.0, "0.005": 23.0, "0.01": 23.0, "0.025": 23.0, "0.05": 23.0, "0.1": 23.0, "0.25": 23.0, "0.5": 23.0, "1.0": 23.0, "2.5": 23.0, "5.0": 23.0, "10.0": 23.0, "inf": 23.0}, "same": 0.0, "different": 0.0, "refused": 0.0}, "candidate": {"requests": 11.0, "errors": 0.0, "timed": {"0.0005": 0.0, "0.001": 0.0, "0.0025": 9.0, "0.005": 11.0, "0.01": 11.0, "0.025": 11.0, "0.05": 11.0, "0.1": 11.0, "0.25": 11.0, "0.5": 11.0, "1.0": 11.0, "2.5": 11.0, "5.0": 11.0, "10.0": 11.0, "inf": 11.0}, "same": 0.0, "different": 0.0, "refused": 0.0}, "shadow": {"requests": 0.0, "errors": 0.0, "timed": {}, "same": 24.0, "different": 0.0, "refused": 0.0}}, "current": {"all": {"requests": 66.0, "errors": 0.0, "timed": {"0.0005": 0.0, "0.001": 0.0, "0.0025": 58.0, "0.005": 65.0, "0.01": 65.0, "0.025": 66.0, "0.05": 66.0, "0.1": 66.0, "0.25": 66.0, "0.5": 66.0, "1.0": 66.0, "2.5": 66.0, "5.0": 66.0, "10.0": 66.0, "inf": 66.0}, "same": 0.0, "different": 0.0, "refused": 0.0}, "before": {"requests": 43.0, "errors": 0.0, "timed": {"0.0005": 0.0, "0.001": 0.0, "0.0025": 38.0, "0.005": 42.0, "0.01": 42.0, "0.025": 43.0, "0.05": 43.0, "0.1": 43.0, "0.25": 43.0, "0.5": 43.0, "1.0": 43.0, "2.5": 43.0, "5.0": 43.0, "10.0": 43.0, "inf": 43.0}, "same": 0.0, "different": 0.0, "refused": 0.0}}, "tests": {"error_rate>20%": [[-0.5366918058637521, -1.0484119778475736, -2.005537124733501, -3.7011946028333425, -6.46565331392331, -11.325813588992741, -21.08614873400267], [0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]], "p99>50x": [[0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]], "disagreement>90%": [[-4.870580255920568, -8.917525354379594, -15.404493268137475, -24.7108660123478, -36.62535128388119, -52.9985859245473, -79.18880946925572], [0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]]}}}','paused by ada@laptop: it is Friday',4,'2026-11-04 02:00:00.000000','2026-11-04 02:00:00.000000',NULL);
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
CREATE INDEX ix_onnxserve_audit_events_place ON onnxserve_audit_events (place);
CREATE INDEX ix_onnxserve_audit_events_endpoint ON onnxserve_audit_events (endpoint);
CREATE INDEX ix_onnxserve_audit_events_model ON onnxserve_audit_events (model, id);
CREATE INDEX ix_onnxserve_audit_events_deleted ON onnxserve_audit_events (endpoint) WHERE action = 'delete';
CREATE INDEX ix_onnxserve_rollouts_endpoint ON onnxserve_rollouts (endpoint);
CREATE UNIQUE INDEX ux_onnxserve_rollouts_live ON onnxserve_rollouts (endpoint) WHERE ended_at IS NULL;
CREATE INDEX ix_onnxserve_monitor_windows_counted ON onnxserve_monitor_windows (by_hand, endpoint, monitor, state, verdict, attempts, updated_at);
CREATE INDEX ix_onnxserve_monitor_windows_state ON onnxserve_monitor_windows (state);
CREATE INDEX ix_onnxserve_alerts_fingerprint ON onnxserve_alerts (fingerprint);
CREATE INDEX ix_onnxserve_alerts_endpoint ON onnxserve_alerts (endpoint);
CREATE INDEX ix_onnxserve_silences_endpoint ON onnxserve_silences (endpoint);
CREATE INDEX ix_onnxserve_retrainings_endpoint ON onnxserve_retrainings (endpoint);
CREATE INDEX ix_onnxserve_retrainings_model ON onnxserve_retrainings (model);
CREATE INDEX ix_onnxserve_registry_changes_changed_at ON onnxserve_registry_changes (changed_at);
CREATE INDEX ix_onnxserve_inbox_size ON onnxserve_inbox (endpoint, size);
COMMIT;
