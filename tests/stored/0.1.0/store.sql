BEGIN TRANSACTION;
CREATE TABLE onnxserve_alembic_version (version_num VARCHAR(32) NOT NULL PRIMARY KEY);
INSERT INTO "onnxserve_alembic_version" VALUES('0015');
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
INSERT INTO "onnxserve_alerts" VALUES(1,'flights/daily','flights','daily','firing','2026-11-04 01:00:00.000000','2026-11-04 01:00:00.000000',NULL,1,'{"order": "2026-11-03T00:00:00+00:00 000001", "weight": 20.0, "lines": ["flights, flight-delay version 1, 2026-11-03/2026-11-04: drift", "- distance, range, share out of range 105 SD (threshold 5.632 SD): out of range 0.4% \u2192 100.0%, more above; changes the probability of on time by -0.058 on average, and the class of 5.4% of the rows; drift since the window of 3 November 2026; 100.0% of rows are outside of -24.1 to 1830 (above), 0.4% \u00b1 0.9% is usual", "- distance, distribution, mean 90.16 SD (threshold 3.525 SD): mean 886.6 \u2192 2842, higher; changes the probability of on time by -0.058 on average, and the class of 5.4% of the rows; drift since the window of 3 November 2026; mean 2842, 886.9 \u00b1 21.3 is usual"], "link": "", "next": "next: onnxserve retrain run flights --monitor daily, or onnxserve alert silence flights --monitor daily --for 2h", "tags": [], "news": "firing", "number": 1, "since": "2026-11-04T01:00:00+00:00", "told_weight": 20.0, "is_told": false}');
INSERT INTO "onnxserve_alerts" VALUES(2,'flights/accuracy/failing','flights','accuracy','resolved','2026-11-04 02:00:00.000000','2026-11-04 02:00:00.000000',NULL,1,'{"order": "", "weight": 1.0, "lines": ["the labels can be read"], "link": "", "next": "", "tags": [], "news": "resolved", "number": 2, "since": "2026-11-04T02:00:00+00:00", "told_weight": 0.0, "is_told": false}');
INSERT INTO "onnxserve_alerts" VALUES(3,'flights/daily/said/7569a3be1684','flights','daily','said','2026-11-04 02:00:00.000000','2026-11-04 02:00:00.000000',NULL,1,'{"order": "", "weight": 1.0, "lines": ["flights: flight-delay version 3 is proposed: the version passed its gate without an evaluation (checked: parity, signature; not checked: evaluation: the policy skips it; not checked: robustness: the policy skips it; not checked: budget: the policy skips it); `onnxserve rollout start flights --to 3` rolls it out"], "link": "", "next": "", "tags": [], "news": "said", "number": 1, "since": "2026-11-04T02:00:00+00:00", "told_weight": 1.0, "is_told": false}');
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
INSERT INTO "onnxserve_api_keys" VALUES('robot','1b285f61b48ed99911d8f28ff95956b08c1fd34bd5fd213cf3b9cf51fc93e923','["infer", "read"]','["flights"]','ada@laptop','2026-11-02 00:00:00.000000',NULL,NULL,'["10/second", "1000/hour"]');
INSERT INTO "onnxserve_api_keys" VALUES('dashboard','ca4ba661e9fb9d7d36f0be1656f31a0d11edd63c9f1109757c1992e282aff449','["read"]','[]','ada@laptop','2026-11-02 00:00:00.000000','2027-01-31 00:00:00.000000',NULL,'[]');
INSERT INTO "onnxserve_api_keys" VALUES('lost','2f563352c0072740783057431209dddf4665eeb76210cceed5a1dbae4fb09a6d','["admin"]','[]','ada@laptop','2026-11-02 00:00:00.000000',NULL,'2026-11-02 00:00:00.000000','[]');
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
	previous VARCHAR(64) DEFAULT '' NOT NULL,
	digest VARCHAR(64) DEFAULT '' NOT NULL,
	signed_by VARCHAR(63) DEFAULT '' NOT NULL,
	signature VARCHAR(255) DEFAULT '' NOT NULL,
	PRIMARY KEY (id)
);
INSERT INTO "onnxserve_audit_events" VALUES(1,'2026-11-02 00:00:00.000000','ada@laptop','gate','','flight-delay','1','','passed without an evaluation','checked: parity; not checked: signature: there is no version to compare it with; not checked: evaluation: the policy skips it; not checked: robustness: the policy skips it; not checked: budget: the policy skips it','{"tagged": true, "files": "759c787a2391cce738e3aa6a061ac5fb7b85fa692209b0fda946533e9a2a0b33", "policy": "tag onnxserve.gate.policy of model flight-delay", "policy_digest": "4ef4228eda6a637c", "report": "20b8321727db4f16aa4946ee8a880a31/gate_report.html", "run_id": "20b8321727db4f16aa4946ee8a880a31", "report_digest": "29652bef6e74dca6d6cf2d92dc4cf4d7bda11f2c0e1ad354582bd6eb818d7d79", "checks": {"parity": {"state": "passed", "rows": 1894.0}, "signature": {"state": "skipped"}, "evaluation": {"state": "skipped"}, "robustness": {"state": "skipped"}, "budget": {"state": "skipped"}}}','','b755508f58d2eadb6219339cb7682d8850f4a56108d090e092c43f015b0c42fa','','');
INSERT INTO "onnxserve_audit_events" VALUES(2,'2026-11-02 00:00:00.000000','ada@laptop','promote','','flight-delay','1','','version 1 in @champion','checked: parity; not checked: signature: there is no version to compare it with; not checked: evaluation: the policy skips it; not checked: robustness: the policy skips it; not checked: budget: the policy skips it','{"to": "@champion", "gate": "passed without an evaluation", "report": "20b8321727db4f16aa4946ee8a880a31/gate_report.html", "begun": "2026-11-02T00:00:00+00:00", "moved": {"place": "@champion", "before": ""}}','b755508f58d2eadb6219339cb7682d8850f4a56108d090e092c43f015b0c42fa','633fd54fae30adea1d425a84452ba82aa3e91a70eb3b72c8b5a70dee4ccf0a6a','','');
INSERT INTO "onnxserve_audit_events" VALUES(3,'2026-11-02 00:00:00.000000','ada@laptop','create','flights','','','','champion models:/flight-delay@champion 100','','{"spec": "apiVersion: onnxserve/v1\nname: flights\nvariants:\n  champion:\n    model: models:/flight-delay@champion\nserver:\n  port: 20498\n  model_control_mode: explicit\nmonitors:\n  daily:\n    min_rows: 100\n    independent_rows: true\n    retrain:\n      project: /srv/onnxserve/project\n      env_manager: local\n  accuracy:\n    kind: performance\n    min_rows: 100\n    require:\n    - accuracy>=0.6\n  level:\n    kind: service_level\n    require:\n    - error_rate<=1%\n"}','','64ded3b7a508d2bd7aa8956daf61e88c37b66c1a2cd833a903f8a538ad1743e8','','');
INSERT INTO "onnxserve_audit_events" VALUES(4,'2026-11-02 00:00:00.000000','ada@laptop','update','flights','','','','challenger models:/flight-delay/2 shadow','a comparison','{"spec": "apiVersion: onnxserve/v1\nname: flights\nvariants:\n  champion:\n    model: models:/flight-delay@champion\n  challenger:\n    model: models:/flight-delay/2\n    weight: 0\n    shadow: true\nserver:\n  port: 20498\n  model_control_mode: explicit\nmonitors:\n  daily:\n    min_rows: 100\n    independent_rows: true\n    retrain:\n      project: /srv/onnxserve/project\n      env_manager: local\n  accuracy:\n    kind: performance\n    min_rows: 100\n    require:\n    - accuracy>=0.6\n  level:\n    kind: service_level\n    require:\n    - error_rate<=1%\n"}','64ded3b7a508d2bd7aa8956daf61e88c37b66c1a2cd833a903f8a538ad1743e8','ea0f80ef7b2ffbaff348ba5210ce6854734d4b3d23ce590e9637f43b22219638','','');
INSERT INTO "onnxserve_audit_events" VALUES(5,'2026-11-02 00:00:00.000000','ada@laptop','key.create','','','','','key robot','','{"scopes": ["infer", "read"], "endpoints": ["flights"], "limits": ["10/second", "1000/hour"]}','ea0f80ef7b2ffbaff348ba5210ce6854734d4b3d23ce590e9637f43b22219638','2471cf068892d276bc01b6748f967f9c1462fb44cfee85bd16c46facd42d8ff7','','');
INSERT INTO "onnxserve_audit_events" VALUES(6,'2026-11-02 00:00:00.000000','ada@laptop','key.create','','','','','key dashboard','','{"scopes": ["read"], "endpoints": [], "limits": []}','2471cf068892d276bc01b6748f967f9c1462fb44cfee85bd16c46facd42d8ff7','fa75c67a7490938a539f731edb514f6c021af56b834b9c5cbc6273826aa11dd6','','');
INSERT INTO "onnxserve_audit_events" VALUES(7,'2026-11-02 00:00:00.000000','ada@laptop','key.create','','','','','key lost','','{"scopes": ["admin"], "endpoints": [], "limits": []}','fa75c67a7490938a539f731edb514f6c021af56b834b9c5cbc6273826aa11dd6','5fcb17b8e648fe65b86f2b19f7348b3ebc8c6997c7353212c718f0ea1e00ac87','','');
INSERT INTO "onnxserve_audit_events" VALUES(8,'2026-11-02 00:00:00.000000','ada@laptop','key.revoke','','','','key lost','','it was in a log','{}','5fcb17b8e648fe65b86f2b19f7348b3ebc8c6997c7353212c718f0ea1e00ac87','4473ade7f7326ca67b4a2289f15caeba7b31880042af9e8cb0995fb1bf5131a7','','');
INSERT INTO "onnxserve_audit_events" VALUES(9,'2026-11-04 01:00:00.000000','controller@laptop','retrain.start','flights','flight-delay','','version 1','full training','monitor daily, 2026-11-03/2026-11-04: drift: distance: out of range 0.4% → 100.0%, more above; changes the probability of on time by -0.058 on average, and the class of 5.4% of the rows; since 3 November 2026','{"monitor": "daily", "window": "2026-11-03/2026-11-04", "verdict": "drift", "report": "run 463a44bf8bc54a76b120b72b2bb6e777"}','633fd54fae30adea1d425a84452ba82aa3e91a70eb3b72c8b5a70dee4ccf0a6a','fcaeda321faa68e8f7c14e908bd8b3273548cf14d34685e29a66e6425ba0fccd','','');
INSERT INTO "onnxserve_audit_events" VALUES(10,'2026-11-04 02:00:00.000000','ada@laptop','monitor.accept','flights','','','','','there are new routes','{"monitor": "daily", "baseline": "distance since 2026-11-03T00:00:00+00:00"}','4473ade7f7326ca67b4a2289f15caeba7b31880042af9e8cb0995fb1bf5131a7','5ae8851578b298a8ea3b30b4b3e5400b473ac32430f07262253f3b7eb67be030','','');
INSERT INTO "onnxserve_audit_events" VALUES(11,'2026-11-04 02:00:00.000000','ada@laptop','monitor.pause','flights','','','','','the gateway measures this','{"monitor": "level"}','5ae8851578b298a8ea3b30b4b3e5400b473ac32430f07262253f3b7eb67be030','a8e3b8b0e1a4ed3df69b6b0c865f52a9880c1433c8c2a8dc7a2fafad5d83ea3c','','');
INSERT INTO "onnxserve_audit_events" VALUES(12,'2026-11-04 02:00:00.000000','ada@laptop','silence','flights','','','','','the labels are late','{"monitor": "accuracy", "until": "2026-11-11T02:00:00+00:00", "silence": 1}','a8e3b8b0e1a4ed3df69b6b0c865f52a9880c1433c8c2a8dc7a2fafad5d83ea3c','92a026520a6254282d7c2ba0705356de4138aa16e6203d51b44d61eeacbdea94','','');
INSERT INTO "onnxserve_audit_events" VALUES(13,'2026-11-04 02:00:00.000000','controller@laptop','retrain.run','flights','flight-delay','','version 1','run 34565954f3994de5a6cc7fe7ae2883c4','retraining 1 trains on 480 labelled rows up to 2026-11-04','{"retraining": 1, "held_out_rows": 0, "window": "2026-11-03/2026-11-04", "attempt": 1}','fcaeda321faa68e8f7c14e908bd8b3273548cf14d34685e29a66e6425ba0fccd','c2a9c3117bedd42acb49ef99a1f6809d7637a9aefad1c961e270be55e01351c8','','');
INSERT INTO "onnxserve_audit_events" VALUES(14,'2026-11-04 02:00:00.000000','controller@laptop','retrain.version','flights','flight-delay','3','version 1','version 3','run 34565954f3994de5a6cc7fe7ae2883c4 of retraining 1 registered the version','{"retraining": 1}','c2a9c3117bedd42acb49ef99a1f6809d7637a9aefad1c961e270be55e01351c8','a2667547a90166cdd560ee7e519d5eaa53d5ff59f7383c3e2a6d6114ceec41ed','','');
INSERT INTO "onnxserve_audit_events" VALUES(15,'2026-11-04 02:00:00.000000','controller@laptop','gate','','flight-delay','3','models:/flight-delay/1','passed without an evaluation','checked: parity, signature; not checked: evaluation: the policy skips it; not checked: robustness: the policy skips it; not checked: budget: the policy skips it','{"tagged": true, "files": "5f69267eec0e4fc1ad0133acd6ea4dcd481ac0d9d0e49c4a9bcb86f6f4045e47", "policy": "tag onnxserve.gate.policy of model flight-delay", "policy_digest": "4ef4228eda6a637c", "report": "1faa1f460fed4d3e9899f472044af8a8/gate_report.html", "run_id": "1faa1f460fed4d3e9899f472044af8a8", "report_digest": "65d41f05fbc1eb5f06ab2f2cbab63e4ee11258664f288aa86a2b33482c160127", "checks": {"parity": {"state": "passed", "rows": 1894.0}, "signature": {"state": "passed", "changes": 0.0, "breaking": 0.0}, "evaluation": {"state": "skipped"}, "robustness": {"state": "skipped"}, "budget": {"state": "skipped"}}}','a2667547a90166cdd560ee7e519d5eaa53d5ff59f7383c3e2a6d6114ceec41ed','57018d18d1acf1e8d844d72613eddf2bd332ee6ed17d7be8779cf749b6c61f8c','','');
INSERT INTO "onnxserve_audit_events" VALUES(16,'2026-11-04 02:00:00.000000','controller@laptop','retrain.end','flights','flight-delay','3','','proposed','the version passed its gate without an evaluation (checked: parity, signature; not checked: evaluation: the policy skips it; not checked: robustness: the policy skips it; not checked: budget: the policy skips it); `onnxserve rollout start flights --to 3` rolls it out','{"retraining": 1, "state": "proposed", "run_id": "34565954f3994de5a6cc7fe7ae2883c4"}','57018d18d1acf1e8d844d72613eddf2bd332ee6ed17d7be8779cf749b6c61f8c','e24d95d5d24f6ad35a9333a8efbe4644058ac385774a2df9d5f0ab30bf1ac71c','','');
INSERT INTO "onnxserve_audit_events" VALUES(17,'2026-11-28 14:02:54.765711','ada@laptop','rollout.start','flights','flight-delay','2','version 1','version 2 by 50 %, 100 %','it is new','{"steps": [50, 100], "every": 1.0, "abort_on": "error_rate>20%"}','e24d95d5d24f6ad35a9333a8efbe4644058ac385774a2df9d5f0ab30bf1ac71c','f822b4f1bd013d237735a35ed78339e3507a163172b846dfd4e4d91391b28aba','','');
INSERT INTO "onnxserve_audit_events" VALUES(18,'2026-11-04 02:00:00.000000','ada@laptop','update','flights','','','variants.candidate.allow_pyfunc not set','candidate models:/flight-delay/2 0, variants.candidate.allow_pyfunc True','rollout to version 2','{"spec": "apiVersion: onnxserve/v1\nname: flights\nvariants:\n  champion:\n    model: models:/flight-delay@champion\n  challenger:\n    model: models:/flight-delay/2\n    weight: 0\n    shadow: true\n  candidate:\n    model: models:/flight-delay/2\n    weight: 0\n    allow_pyfunc: true\nserver:\n  port: 20498\n  model_control_mode: explicit\nmonitors:\n  daily:\n    min_rows: 100\n    independent_rows: true\n    retrain:\n      project: /srv/onnxserve/project\n      env_manager: local\n  accuracy:\n    kind: performance\n    min_rows: 100\n    require:\n    - accuracy>=0.6\n  level:\n    kind: service_level\n    require:\n    - error_rate<=1%\n"}','92a026520a6254282d7c2ba0705356de4138aa16e6203d51b44d61eeacbdea94','18732c6e3df6af6372b324fed19fd5694c33df70d9cec9341f962a0172b94cd8','','');
INSERT INTO "onnxserve_audit_events" VALUES(19,'2026-11-04 02:00:00.000000','ada@laptop','rollout.step','flights','flight-delay','2','0 %','50 %','waiting for requests: the candidate has answered 0 of 5','{"rollout": 1, "state": "stepping"}','f822b4f1bd013d237735a35ed78339e3507a163172b846dfd4e4d91391b28aba','bcfd3a58456bdd03086b849e2e790aa53d0271ab0eb1192dd2bca0f6af6aaeeb','','');
INSERT INTO "onnxserve_audit_events" VALUES(20,'2026-11-04 02:00:00.000000','ada@laptop','traffic','flights','','','champion 100, candidate 0','champion 50, candidate 50','step 50 % of a rollout','{"spec": "apiVersion: onnxserve/v1\nname: flights\nvariants:\n  champion:\n    model: models:/flight-delay@champion\n    weight: 50\n  challenger:\n    model: models:/flight-delay/2\n    weight: 0\n    shadow: true\n  candidate:\n    model: models:/flight-delay/2\n    weight: 50\n    allow_pyfunc: true\nserver:\n  port: 20498\n  model_control_mode: explicit\nmonitors:\n  daily:\n    min_rows: 100\n    independent_rows: true\n    retrain:\n      project: /srv/onnxserve/project\n      env_manager: local\n  accuracy:\n    kind: performance\n    min_rows: 100\n    require:\n    - accuracy>=0.6\n  level:\n    kind: service_level\n    require:\n    - error_rate<=1%\n"}','18732c6e3df6af6372b324fed19fd5694c33df70d9cec9341f962a0172b94cd8','a756176ac21562c56ee668d9dcc130ce1084994b00c6a31eb748534f59506adb','','');
INSERT INTO "onnxserve_audit_events" VALUES(21,'2026-11-04 02:00:00.000000','ada@laptop','rollout.step','flights','flight-delay','2','50 %','100 %','','{"rollout": 1, "state": "stepping", "current": {"requests": 21.0, "errors": 0.0}, "candidate": {"requests": 10.0, "errors": 0.0}, "criteria": {"error_rate>20%": {"figures": "0.00% of 10 requests to version 2 failed, 0.00% of 21 to version 1", "log_evidence": -1.765, "log_evidence_needed": 3.689}}}','bcfd3a58456bdd03086b849e2e790aa53d0271ab0eb1192dd2bca0f6af6aaeeb','eed1da8f8ece24e029172c5f281304cd2dcd73d3ede5950fec4ac10373ecce7c','','');
INSERT INTO "onnxserve_audit_events" VALUES(22,'2026-11-04 02:00:00.000000','ada@laptop','traffic','flights','','','champion 50, candidate 50','champion 0, candidate 100','step 100 % of a rollout','{"spec": "apiVersion: onnxserve/v1\nname: flights\nvariants:\n  champion:\n    model: models:/flight-delay@champion\n    weight: 0\n  challenger:\n    model: models:/flight-delay/2\n    weight: 0\n    shadow: true\n  candidate:\n    model: models:/flight-delay/2\n    allow_pyfunc: true\nserver:\n  port: 20498\n  model_control_mode: explicit\nmonitors:\n  daily:\n    min_rows: 100\n    independent_rows: true\n    retrain:\n      project: /srv/onnxserve/project\n      env_manager: local\n  accuracy:\n    kind: performance\n    min_rows: 100\n    require:\n    - accuracy>=0.6\n  level:\n    kind: service_level\n    require:\n    - error_rate<=1%\n"}','a756176ac21562c56ee668d9dcc130ce1084994b00c6a31eb748534f59506adb','2a6f95ad9ac44f6111573d9979169437a57449a9bf55b16eabb1d4779cb136c3','','');
INSERT INTO "onnxserve_audit_events" VALUES(23,'2026-11-04 02:00:00.000000','ada@laptop','alias','flights','flight-delay','2','version 1 in champion','version 2 in champion','rollout to version 2 has passed its steps','{"stood_there": "1", "moved": {"place": "@champion", "before": "1"}}','eed1da8f8ece24e029172c5f281304cd2dcd73d3ede5950fec4ac10373ecce7c','5845012caf7e26bddb03644f589ef18c9bcae4c48d3c505d8d3fbc2e160f5c0c','','');
INSERT INTO "onnxserve_audit_events" VALUES(24,'2026-11-04 02:00:00.000000','ada@laptop','traffic','flights','','','champion 0, candidate 100','champion 100, candidate 0','rollout to version 2 has promoted it','{"spec": "apiVersion: onnxserve/v1\nname: flights\nvariants:\n  champion:\n    model: models:/flight-delay@champion\n  challenger:\n    model: models:/flight-delay/2\n    weight: 0\n    shadow: true\n  candidate:\n    model: models:/flight-delay/2\n    weight: 0\n    allow_pyfunc: true\nserver:\n  port: 20498\n  model_control_mode: explicit\nmonitors:\n  daily:\n    min_rows: 100\n    independent_rows: true\n    retrain:\n      project: /srv/onnxserve/project\n      env_manager: local\n  accuracy:\n    kind: performance\n    min_rows: 100\n    require:\n    - accuracy>=0.6\n  level:\n    kind: service_level\n    require:\n    - error_rate<=1%\n"}','2a6f95ad9ac44f6111573d9979169437a57449a9bf55b16eabb1d4779cb136c3','069505abcf3239207abf669f6ef2bdf3b909389f66154ec4d7d418a7d496871b','','');
INSERT INTO "onnxserve_audit_events" VALUES(25,'2026-11-04 02:00:00.000000','ada@laptop','update','flights','','','candidate models:/flight-delay/2 0, variants.candidate.allow_pyfunc True','variants.candidate.allow_pyfunc not set','rollout to version 2 has promoted it','{"spec": "apiVersion: onnxserve/v1\nname: flights\nvariants:\n  champion:\n    model: models:/flight-delay@champion\n  challenger:\n    model: models:/flight-delay/2\n    weight: 0\n    shadow: true\nserver:\n  port: 20498\n  model_control_mode: explicit\nmonitors:\n  daily:\n    min_rows: 100\n    independent_rows: true\n    retrain:\n      project: /srv/onnxserve/project\n      env_manager: local\n  accuracy:\n    kind: performance\n    min_rows: 100\n    require:\n    - accuracy>=0.6\n  level:\n    kind: service_level\n    require:\n    - error_rate<=1%\n"}','069505abcf3239207abf669f6ef2bdf3b909389f66154ec4d7d418a7d496871b','d098154ab2c8a8353764907d52afb8476f0847713fb8132d345074ad63be3df9','','');
INSERT INTO "onnxserve_audit_events" VALUES(26,'2026-11-04 02:00:00.000000','ada@laptop','rollout.end','flights','flight-delay','2','version 1','version 2','version 2 is served instead of 1','{"rollout": 1, "state": "promoted", "current": {"requests": 3.0, "errors": 0.0}, "candidate": {"requests": 13.0, "errors": 0.0}, "criteria": {"error_rate>20%": {"figures": "0.00% of 13 requests to version 2 failed, 0.00% of 3 to version 1", "log_evidence": -2.022, "log_evidence_needed": 4.382}}, "moved": {"place": "", "before": "1"}}','5845012caf7e26bddb03644f589ef18c9bcae4c48d3c505d8d3fbc2e160f5c0c','089c28d10020a797fafaf98f767f500baf9f9bfc358cac602fbad9cc34326ebc','','');
INSERT INTO "onnxserve_audit_events" VALUES(27,'2026-11-28 14:03:01.276357','ada@laptop','rollout.start','flights','flight-delay','1','version 2','version 1 by 50 %, 100 %','','{"steps": [50, 100], "every": 3600.0, "abort_on": "error_rate>20%,p99>50x,disagreement>90%"}','089c28d10020a797fafaf98f767f500baf9f9bfc358cac602fbad9cc34326ebc','fc56bfb82b5f9853e11187308f0f3c8f4ba06cf0ecb99a598f3ddf9eebe38cfe','','');
INSERT INTO "onnxserve_audit_events" VALUES(28,'2026-11-04 02:00:00.000000','ada@laptop','update','flights','','','variants.candidate.allow_pyfunc not set','candidate models:/flight-delay/1 0, variants.candidate.allow_pyfunc True','rollout to version 1','{"spec": "apiVersion: onnxserve/v1\nname: flights\nvariants:\n  champion:\n    model: models:/flight-delay@champion\n  challenger:\n    model: models:/flight-delay/2\n    weight: 0\n    shadow: true\n  candidate:\n    model: models:/flight-delay/1\n    weight: 0\n    allow_pyfunc: true\nserver:\n  port: 20498\n  model_control_mode: explicit\nmonitors:\n  daily:\n    min_rows: 100\n    independent_rows: true\n    retrain:\n      project: /srv/onnxserve/project\n      env_manager: local\n  accuracy:\n    kind: performance\n    min_rows: 100\n    require:\n    - accuracy>=0.6\n  level:\n    kind: service_level\n    require:\n    - error_rate<=1%\n"}','d098154ab2c8a8353764907d52afb8476f0847713fb8132d345074ad63be3df9','5a84babec140edfec5181ffde543cd65de71b2bbd021e8059f4a86281537b5f2','','');
INSERT INTO "onnxserve_audit_events" VALUES(29,'2026-11-04 02:00:00.000000','ada@laptop','update','flights','','','variants.candidate-shadow.allow_pyfunc not set','candidate-shadow models:/flight-delay/1 shadow, variants.candidate-shadow.allow_pyfunc True','rollout to version 1','{"spec": "apiVersion: onnxserve/v1\nname: flights\nvariants:\n  champion:\n    model: models:/flight-delay@champion\n  challenger:\n    model: models:/flight-delay/2\n    weight: 0\n    shadow: true\n  candidate:\n    model: models:/flight-delay/1\n    weight: 0\n    allow_pyfunc: true\n  candidate-shadow:\n    model: models:/flight-delay/1\n    weight: 0\n    shadow: true\n    allow_pyfunc: true\nserver:\n  port: 20498\n  model_control_mode: explicit\nmonitors:\n  daily:\n    min_rows: 100\n    independent_rows: true\n    retrain:\n      project: /srv/onnxserve/project\n      env_manager: local\n  accuracy:\n    kind: performance\n    min_rows: 100\n    require:\n    - accuracy>=0.6\n  level:\n    kind: service_level\n    require:\n    - error_rate<=1%\n"}','5a84babec140edfec5181ffde543cd65de71b2bbd021e8059f4a86281537b5f2','3c50e7dc6ee58ebb2e0cef11f8dc2750a760edb45f28095faf0419e9a4f89f52','','');
INSERT INTO "onnxserve_audit_events" VALUES(30,'2026-11-04 02:00:00.000000','ada@laptop','rollout.step','flights','flight-delay','1','0 %','50 %','waiting for requests: the candidate has answered 0 of 1000','{"rollout": 2, "state": "stepping"}','fc56bfb82b5f9853e11187308f0f3c8f4ba06cf0ecb99a598f3ddf9eebe38cfe','56bdfedd2304bfe67ad34b7ef3a9e8ce8daa00875c0cd51223156ea448dc7a09','','');
INSERT INTO "onnxserve_audit_events" VALUES(31,'2026-11-04 02:00:00.000000','ada@laptop','traffic','flights','','','champion 100, candidate 0','champion 50, candidate 50','step 50 % of a rollout','{"spec": "apiVersion: onnxserve/v1\nname: flights\nvariants:\n  champion:\n    model: models:/flight-delay@champion\n    weight: 50\n  challenger:\n    model: models:/flight-delay/2\n    weight: 0\n    shadow: true\n  candidate:\n    model: models:/flight-delay/1\n    weight: 50\n    allow_pyfunc: true\n  candidate-shadow:\n    model: models:/flight-delay/1\n    weight: 0\n    shadow: true\n    allow_pyfunc: true\nserver:\n  port: 20498\n  model_control_mode: explicit\nmonitors:\n  daily:\n    min_rows: 100\n    independent_rows: true\n    retrain:\n      project: /srv/onnxserve/project\n      env_manager: local\n  accuracy:\n    kind: performance\n    min_rows: 100\n    require:\n    - accuracy>=0.6\n  level:\n    kind: service_level\n    require:\n    - error_rate<=1%\n"}','3c50e7dc6ee58ebb2e0cef11f8dc2750a760edb45f28095faf0419e9a4f89f52','dabc75c54b91e716a98bd29fd69f8f5da6fc4b633752a5cef396a7fbfd88c7e0','','');
INSERT INTO "onnxserve_audit_events" VALUES(32,'2026-11-04 02:00:00.000000','ada@laptop','rollout.step','flights','flight-delay','1','stepping','paused','paused by ada@laptop: it is Friday','{"rollout": 2, "state": "paused", "current": {"requests": 16.0, "errors": 0.0}, "candidate": {"requests": 12.0, "errors": 0.0}, "shadow": {"same": 17.0, "different": 0.0}, "criteria": {"error_rate>20%": {"figures": "0.00% of 12 requests to version 1 failed, 0.00% of 16 to version 2", "log_evidence": -1.94, "log_evidence_needed": 4.787}, "p99>50x": {"figures": "not judged: version 2 has too few timed requests", "log_evidence": 0.0, "log_evidence_needed": 4.787}, "disagreement>90%": {"figures": "version 1 answers 0.00% of 17 rows differently from the current version", "log_evidence": -5.34, "log_evidence_needed": 4.787}}}','56bdfedd2304bfe67ad34b7ef3a9e8ce8daa00875c0cd51223156ea448dc7a09','afe0bb6d856611277fbcbfdb7790ebe12dc2a21ee5fc006d3bdad3f57d5bbbef','','');
INSERT INTO "onnxserve_audit_events" VALUES(33,'2026-11-04 03:00:00.000000','ben','register','','flight-delay','3','','','','{"created": 1795874553747, "authors": ["ben"]}','afe0bb6d856611277fbcbfdb7790ebe12dc2a21ee5fc006d3bdad3f57d5bbbef','23ab512fb8947e91554e6d4d1e5d820665f75867ac41b70b3fba322265a5e132','','');
INSERT INTO "onnxserve_audit_events" VALUES(34,'2026-11-04 03:00:00.000000','ada@laptop','gate','','flight-delay','3','models:/flight-delay/2','passed without an evaluation','checked: parity, signature; not checked: evaluation: the policy skips it; not checked: robustness: the policy skips it; not checked: budget: the policy skips it','{"tagged": true, "files": "5f69267eec0e4fc1ad0133acd6ea4dcd481ac0d9d0e49c4a9bcb86f6f4045e47", "policy": "tag onnxserve.gate.policy of model flight-delay", "policy_digest": "aceb1c0968215bb0", "report": "59dde42b879c44229018372018e07851/gate_report.html", "run_id": "59dde42b879c44229018372018e07851", "report_digest": "3b9b7b9ca2b291ff99d314848c1f899cf20f7de87894c072207254991a9f41d7", "checks": {"parity": {"state": "passed", "rows": 1894.0}, "signature": {"state": "passed", "changes": 0.0, "breaking": 0.0}, "evaluation": {"state": "skipped"}, "robustness": {"state": "skipped"}, "budget": {"state": "skipped"}}}','23ab512fb8947e91554e6d4d1e5d820665f75867ac41b70b3fba322265a5e132','ffa7c61f26ec296e80f89e2a0bacff03728e5d3e152a3fae2c3806ab64b2a8a4','','');
INSERT INTO "onnxserve_audit_events" VALUES(35,'2026-11-04 03:00:00.000000','ben','request','','flight-delay','3','','@champion','it is better','{"subject": {"model": "flight-delay", "version": "3", "place": "@champion", "created": 1795874553747, "files": "5f69267eec0e4fc1ad0133acd6ea4dcd481ac0d9d0e49c4a9bcb86f6f4045e47", "policy": "aceb1c0968215bb0"}, "authors": ["ben"]}','ffa7c61f26ec296e80f89e2a0bacff03728e5d3e152a3fae2c3806ab64b2a8a4','0532e886a5c0d4781ddee7f2b71e717f6aecc13af64f0e0199c2bf6f59a7561a','','');
INSERT INTO "onnxserve_audit_events" VALUES(36,'2026-11-04 04:00:00.000000','eva','approve','','flight-delay','3','','@champion','','{"report": "3b9b7b9ca2b291ff99d314848c1f899cf20f7de87894c072207254991a9f41d7", "verdict": "passed without an evaluation"}','0532e886a5c0d4781ddee7f2b71e717f6aecc13af64f0e0199c2bf6f59a7561a','10b58afaea222e96ea542c13e7e397b34f17943e86724cbcdf2ffbeb68d06b31','','');
INSERT INTO "onnxserve_audit_events" VALUES(37,'2026-11-04 05:00:00.000000','leo','approve','','flight-delay','3','','@champion','','{"report": "3b9b7b9ca2b291ff99d314848c1f899cf20f7de87894c072207254991a9f41d7", "verdict": "passed without an evaluation", "complete": {"model": "flight-delay", "version": "3", "place": "@champion", "created": 1795874553747, "files": "5f69267eec0e4fc1ad0133acd6ea4dcd481ac0d9d0e49c4a9bcb86f6f4045e47", "policy": "aceb1c0968215bb0"}}','10b58afaea222e96ea542c13e7e397b34f17943e86724cbcdf2ffbeb68d06b31','f165dcbddb627f61abbc250c8e1510ffd538a21e69eca9dcb3ca2a09f5bfc550','','');
INSERT INTO "onnxserve_audit_events" VALUES(38,'2026-11-04 05:00:00.000000','ben','register','','flight-delay','4','','','','{"created": 1795874585939, "authors": ["ben"]}','f165dcbddb627f61abbc250c8e1510ffd538a21e69eca9dcb3ca2a09f5bfc550','23a2a235de01c485eb726a988a34ac771fd22d227d8e2196b41c20596f0245e5','','');
INSERT INTO "onnxserve_audit_events" VALUES(39,'2026-11-04 05:00:00.000000','ada@laptop','gate','','flight-delay','4','models:/flight-delay/2','passed without an evaluation','checked: parity, signature; not checked: evaluation: the policy skips it; not checked: robustness: the policy skips it; not checked: budget: the policy skips it','{"tagged": true, "files": "a3f43324922017c916c965fa09f1931c6e3ee0ef1d83d0954ccd384edf3d3fb7", "policy": "tag onnxserve.gate.policy of model flight-delay", "policy_digest": "aceb1c0968215bb0", "report": "d354dd6706094b24897cc078df3d42a9/gate_report.html", "run_id": "d354dd6706094b24897cc078df3d42a9", "report_digest": "b0892682779f419e64c7ddf396c6bd698359fe8d741ab79f7150ac3d0a47bb64", "checks": {"parity": {"state": "passed", "rows": 1894.0}, "signature": {"state": "passed", "changes": 0.0, "breaking": 0.0}, "evaluation": {"state": "skipped"}, "robustness": {"state": "skipped"}, "budget": {"state": "skipped"}}}','23a2a235de01c485eb726a988a34ac771fd22d227d8e2196b41c20596f0245e5','733c666a896c57a1a1c786724ce10c41de72ef85d3e831fb163473cfc929f815','','');
INSERT INTO "onnxserve_audit_events" VALUES(40,'2026-11-04 05:00:00.000000','ben','request','','flight-delay','4','','@champion','it is better','{"subject": {"model": "flight-delay", "version": "4", "place": "@champion", "created": 1795874585939, "files": "a3f43324922017c916c965fa09f1931c6e3ee0ef1d83d0954ccd384edf3d3fb7", "policy": "aceb1c0968215bb0"}, "authors": ["ben"]}','733c666a896c57a1a1c786724ce10c41de72ef85d3e831fb163473cfc929f815','3c3354129efd6f4ca202e041961c6a75265d5bd77d4374d24519009ada6f5e74','','');
INSERT INTO "onnxserve_audit_events" VALUES(41,'2026-11-04 06:00:00.000000','eva','approve','','flight-delay','4','','@champion','','{"report": "b0892682779f419e64c7ddf396c6bd698359fe8d741ab79f7150ac3d0a47bb64", "verdict": "passed without an evaluation"}','3c3354129efd6f4ca202e041961c6a75265d5bd77d4374d24519009ada6f5e74','7e09bd85a0ba0a4526b0fbc837729dfce09d5b7661a84e0c470fad527244b08d','','');
INSERT INTO "onnxserve_audit_events" VALUES(42,'2026-11-04 06:00:00.000000','ada@laptop','promote','','flight-delay','3','version 2 in @champion','version 3 in @champion','checked: parity, signature; not checked: evaluation: the policy skips it; not checked: robustness: the policy skips it; not checked: budget: the policy skips it','{"to": "@champion", "gate": "passed without an evaluation", "report": "59dde42b879c44229018372018e07851/gate_report.html", "begun": "2026-11-04T06:00:00+00:00", "moved": {"place": "@champion", "before": "2"}}','7e09bd85a0ba0a4526b0fbc837729dfce09d5b7661a84e0c470fad527244b08d','c12c09653446a45c5f103c8027108ee57d072d84ca425fafa593fceec0fc3e06','','');
INSERT INTO "onnxserve_audit_events" VALUES(43,'2026-11-04 06:00:00.000000','ada@laptop','promote','','flight-delay','2','','version 2 in Staging','the policy does not gate Staging','{"to": "Staging", "gate": "not asked", "report": "", "begun": "2026-11-04T06:00:00+00:00", "moved": {"place": "Staging", "before": ""}}','c12c09653446a45c5f103c8027108ee57d072d84ca425fafa593fceec0fc3e06','e5e81ae55e244c5f7d19d2983ab39a3df28d0789cfde986875ddfaf7afd43f32','','');
INSERT INTO "onnxserve_audit_events" VALUES(44,'2026-11-04 06:00:00.000000','eva','alias','','flight-delay','2','','@champion','','{"moved": {"place": "@champion", "before": "", "files": "a3f43324922017c916c965fa09f1931c6e3ee0ef1d83d0954ccd384edf3d3fb7"}}','e5e81ae55e244c5f7d19d2983ab39a3df28d0789cfde986875ddfaf7afd43f32','21373577128a7b30268e7668d50130982991b2dfac94d9350d8272d44edf287d','','');
INSERT INTO "onnxserve_audit_events" VALUES(45,'2026-11-04 06:00:00.000000','eva','alias','','flight-delay','3','','@champion','','{"moved": {"place": "@champion", "before": "", "files": "5f69267eec0e4fc1ad0133acd6ea4dcd481ac0d9d0e49c4a9bcb86f6f4045e47"}}','21373577128a7b30268e7668d50130982991b2dfac94d9350d8272d44edf287d','2d163d6375cb5ff134f287e47d4d6167d2c613087a5ab2a4f84c856a378af391','','');
INSERT INTO "onnxserve_audit_events" VALUES(46,'2026-11-04 06:00:00.000000','eva','transition','','flight-delay','1','','Archived','','{"moved": {"place": "Archived", "before": "", "files": "759c787a2391cce738e3aa6a061ac5fb7b85fa692209b0fda946533e9a2a0b33"}}','2d163d6375cb5ff134f287e47d4d6167d2c613087a5ab2a4f84c856a378af391','c729c2bffd63351c387327e5d537acd1cd993f000af61ad1741abd4e28825cdf','','');
INSERT INTO "onnxserve_audit_events" VALUES(47,'2026-11-04 06:00:00.000000','ada@laptop','create','everything','','','','champion models:/flight-delay@champion 90, challenger models:/flight-delay/2 10, candidate models:/flight-delay/3 shadow','','{"spec": "apiVersion: onnxserve/v1\nname: everything\nvariants:\n  champion:\n    model: models:/flight-delay@champion\n    weight: 90\n    allow_pyfunc: true\n  challenger:\n    model: models:/flight-delay/2\n    weight: 10\n  candidate:\n    model: models:/flight-delay/3\n    weight: 0\n    shadow: true\nserver:\n  host: 0.0.0.0\n  port: 8080\n  api_keys: true\n  jwt_issuer: https://login.example\n  jwt_audience: flights\n  insecure: true\n  grpc_port: 8081\n  metrics_port: 9090\n  workers: 2\n  threads: 8\n  worker_class: gthread\n  certfile: flights-tls/tls.crt\n  keyfile: flights-tls/tls.key\n  ca_certs: flights-tls/ca.crt\n  device: cuda\n  device_ids:\n  - 0\n  - 1\n  provider_options:\n    gpu_mem_limit: 2147483648\n    arena_extend_strategy: kSameAsRequested\n    cudnn_conv_algo_search: HEURISTIC\n    use_tf32: false\n    enable_cuda_graph: true\n  intra_op_num_threads: 2\n  max_worker_memory_bytes: 1073741824\n  max_body_bytes: 1048576\n  max_text_characters: 50000\n  request_timeout_seconds: 30\n  graceful_timeout_seconds: 20\n  model_control_mode: explicit\n  allowed_hosts:\n  - flights.svc\n  - models.example\n  max_batch_size: 64\n  preferred_batch_size:\n  - 8\n  - 32\n  max_queue_delay_microseconds: 1000\n  max_queue_size: 256\n  default_timeout_microseconds: 500000\n  max_concurrent_requests: 16\n  rate_limit: 100/minute\n  rate_limit_header: x-customer\n  response_cache_bytes: 4194304\n  explain_max_rows: 10\n  max_spool_bytes: 67108864\n  response_cache_seconds: 60\ncontainer:\n  image: registry.example/onnxserve:gpu\n  cpus: 1.5\n  memory_bytes: 2147483648\n  environment:\n    ONNXSERVE_LOG_LEVEL: debug\n  secrets:\n    AWS_SECRET_ACCESS_KEY: flights/secret\n  secret_files:\n    GOOGLE_APPLICATION_CREDENTIALS: flights/google.json\n  restart: on-failure\n  pids: 256\n  network: models\ncapture:\n  fraction: 0.5\n  max_rows_per_request: 500\n  drop:\n  - output.probabilities\n  mask:\n  - carrier\n  keys:\n  - booking\n  retention: 400d\nmonitors:\n  inputs:\n    schedule: 15 6 * * *\n    time_zone: Europe/Berlin\n    grace: 10m\n    reference: rolling:7d\n    min_rows: 300\n    false_alarm_rate: 0.02\n    season: 7d\n    columns:\n    - distance\n    - hour\n    segment_by:\n    - carrier\n    consecutive: 2\n    alert:\n    - oncall\n  answers:\n    every: 1h\n    reference: window:2026-10-01/2026-10-08\n    independent_rows: true\n    columns:\n    - prediction\n  quality:\n    reference: dataset:s3://flights/reference.parquet\n    require:\n    - missing(distance)<=0.1\n  labels:\n    kind: performance\n    require:\n    - accuracy>=0.8\n    - log_loss<=0.6\n    labels_within: 2d\n    labels: reported\n    estimate: decides\n    retrain:\n      project: https://git.example/flights\n      entry_point: retrain\n      mode: incremental\n      sample:\n        recent: 30d\n        fraction: 0.5\n        stratify: hour\n        weight: 14d\n      parameters:\n        depth: 3.0\n        loss: log\n      env_manager: uv\n      schedule: 0 3 * * 1\n      cooldown: 2d\n      max_runs: 4\n      timeout: 2h\n      then: rollout\n      steps: 5,50,100\n      step_every: 10m\n      min_requests: 500\n  shadow:\n    kind: shadow\n    require:\n    - disagreement(candidate)<=0.05\n  level:\n    kind: service_level\n    every: 1h\n    require:\n    - p99<=0.2\n    - error_rate<=1%\nalarms:\n  false_per_year: 4.0\n  min_effect: 0.02\nsticky:\n  header: x-user-id\nkubernetes:\n  replicas: 2\n  max_replicas: 6\n  target_cpu_percent: 60\n  requests_per_second: 200.0\n  prometheus_url: http://prometheus.example:9090\n  gpus: 2\n  host: flights.example\n  ingress_class: nginx\n  tls_secret: flights-tls\n  allowed_namespaces:\n  - web\n  service_monitor: true\n  service_monitor_key: flights/metrics\n  service_account: flights\n  image_pull_secrets:\n  - registry\n  node_selector:\n  - pool=gpu\n  tolerations:\n  - dedicated=ml:NoSchedule\n  force_conflicts: true\nrequire: gate=passed\n", "unapproved": [{"model_uri": "models:/flight-delay/2", "model": "flight-delay", "version": "2", "places": ["@champion"], "share": 10.0, "since": "2026-11-04T06:00:00+00:00", "until": "2026-11-04T07:00:00+00:00"}]}','dabc75c54b91e716a98bd29fd69f8f5da6fc4b633752a5cef396a7fbfd88c7e0','5b62f4d64b356adc1412e2dd548b89b297b87aafce65729c5ccd6a42968d3b57','','');
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
  port: 20498
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
INSERT INTO "onnxserve_monitor_windows" VALUES(1,'flights','daily','2026-11-02 00:00:00.000000','2026-11-03 00:00:00.000000',1,0,'judged','no drift','no column differs from the reference more than its own windows do (p = 0.559 compared with 90 windows of random rows); the clock of agent vm-dac0dcafb003 is an hour or more ahead: its rows are not waited for',240,240,'af6bd465a0fae172ad8fa2dec953970f',0,NULL,'1405aaa01a894ce59452d2310bc07a3d','','{"rows": 240.0, "reference_rows": 600.0, "is_drift": 0.0, "p_value": 0.5590504169007219, "statistic": 2.4431569489889085, "threshold": 3.524885571389631, "blocks": 90.0, "false_alarm_rate": 0.05, "share_of_drifted_columns": 0.0, "drift_score/distance": 2.4431569489889085, "drift_distance/distance": 0.190955529864474, "missing/distance": 0.0, "reference_missing/distance": 0.0016666666666666668, "drift_score/hour": 1.7839014723325661, "drift_distance/hour": 0.14506749765603782, "missing/hour": 0.0, "reference_missing/hour": 0.0, "drift_score/prediction": 1.8194905270062336, "drift_distance/prediction": 0.06105182775971242, "missing/prediction": 0.0, "reference_missing/prediction": 0.0, "drift_score/output.probabilities.0": 2.1198378989255766, "drift_distance/output.probabilities.0": 0.13416303049080258, "missing/output.probabilities.0": 0.0, "reference_missing/output.probabilities.0": 0.0, "drift_score/output.probabilities.1": 2.1198378989255766, "drift_distance/output.probabilities.1": 0.1341630332340289, "missing/output.probabilities.1": 0.0, "reference_missing/output.probabilities.1": 0.0, "drift_score/relations between columns": 1.6025533298611296, "drift_distance/relations between columns": 0.06280563404103141, "drift_score/carrier": 0.6980075856199345, "drift_distance/carrier": 0.024875778829525005, "missing/carrier": 0.0, "reference_missing/carrier": 0.0}','{"basis": "12fba97da6e7e31c2f44d22d66d579c5", "levels": {"number of rows/rows": 5.480638923341991, "relations between columns/_relations.0": 0.25997505419671757, "relations between columns/_relations.1": -0.3090077641105032, "relations between columns/_relations.2": 0.4932013672545297, "relations between columns/_relations.3": -0.17479749611073944, "relations between columns/_relations.4": 0.3584152230804895, "relations between columns/_relations.5": -0.8029575180579072, "relations between columns/_relations.6": -0.5066826280837715, "relations between columns/_relations.7": -0.8477828101730763, "carrier/missing": 0.0, "carrier/new": 0.0, "carrier/frequent": 0.375, "carrier/second": 0.29583333333333334, "carrier/distance": 0.024875778829525005, "distance/missing": 0.0, "distance/level": 939.9712652241327, "distance/spread": 5.711401287317193, "distance/mean": 939.4791666666666, "distance/outside": 0.0, "distance/mode": -0.3, "distance/distance": 0.190955529864474, "hour/missing": 0.0, "hour/level": 11.141666666666667, "hour/spread": 1.9574753300531684, "hour/mean": 11.141666666666666, "hour/outside": 0.0, "hour/mode": -0.24588439253980443, "hour/distance": 0.14506749765603782, "output.probabilities.0/missing": 0.0, "output.probabilities.0/level": 0.5108419546221986, "output.probabilities.0/spread": -0.967496231687433, "output.probabilities.0/mean": 0.5108515174438556, "output.probabilities.0/outside": 0.025, "output.probabilities.0/mode": -0.12908458391481625, "output.probabilities.0/distance": 0.13416303049080258, "output.probabilities.1/missing": 0.0, "output.probabilities.1/level": 0.48915804786717193, "output.probabilities.1/spread": -0.9674962263588975, "output.probabilities.1/mean": 0.4891484811902046, "output.probabilities.1/outside": 0.025, "output.probabilities.1/mode": -0.13466966849313744, "output.probabilities.1/distance": 0.1341630332340289, "prediction/missing": 0.0, "prediction/new": 0.0, "prediction/frequent": 0.5, "prediction/second": 0.5, "prediction/distance": 0.06105182775971242}, "alarms": [], "accepted": [], "shifts": {}, "outcomes": {"distance": ["distribution", "no drift", 2.4431569489889085, 3.524885571389631], "output.probabilities.0": ["range", "no drift", 2.1198378989255766, 5.900046025241855], "output.probabilities.1": ["range", "no drift", 2.1198378989255766, 5.900046025241855], "prediction": ["distribution", "no drift", 1.8194905270062336, 3.640055264555335], "hour": ["distribution", "no drift", 1.7839014723325661, 3.5429864358179053], "relations between columns": ["distribution", "no drift", 1.6025533298611296, 3.5460935292170346], "carrier": ["distribution", "no drift", 0.6980075856199345, 3.5886797435883557], "": ["distribution", "no drift", 2.4431569489889085, 3.524885571389631]}, "effects": {}}','2026-11-04 01:00:00.000000','2026-11-04 01:00:00.000000');
INSERT INTO "onnxserve_monitor_windows" VALUES(2,'flights','daily','2026-11-03 00:00:00.000000','2026-11-04 00:00:00.000000',1,0,'judged','drift','distance: out of range 0.4% → 100.0%, more above; changes the probability of on time by -0.058 on average, and the class of 5.4% of the rows; since 3 November 2026; the clock of agent vm-dac0dcafb003 is an hour or more ahead: its rows are not waited for',240,240,'eb564ac20d17b6cf0abed360011bf295',0,NULL,'463a44bf8bc54a76b120b72b2bb6e777','','{"rows": 240.0, "reference_rows": 600.0, "is_drift": 1.0, "p_value": 3.3567273509006266e-09, "statistic": 90.15742463909537, "threshold": 3.524885571389631, "blocks": 90.0, "false_alarm_rate": 0.05, "share_of_drifted_columns": 0.16666666666666666, "drift_score/distance": 104.96034609989306, "drift_distance/distance": 6.910374033934819, "missing/distance": 0.0, "reference_missing/distance": 0.0016666666666666668, "drift_score/relations between columns": 11.337993185619334, "drift_distance/relations between columns": 0.5469822027999883, "drift_score/hour": 1.703696267850602, "drift_distance/hour": 0.13666279342675947, "missing/hour": 0.0, "reference_missing/hour": 0.0, "drift_score/carrier": 1.6367209225550579, "drift_distance/carrier": 0.06663265842352735, "missing/carrier": 0.0, "reference_missing/carrier": 0.0, "drift_score/output.probabilities.0": 2.542749162749353, "drift_distance/output.probabilities.0": 0.03536365864295537, "missing/output.probabilities.0": 0.0, "reference_missing/output.probabilities.0": 0.0, "drift_score/output.probabilities.1": 2.542749162749353, "drift_distance/output.probabilities.1": 0.03536366225964667, "missing/output.probabilities.1": 0.0, "reference_missing/output.probabilities.1": 0.0, "drift_score/prediction": 0.08730187609026437, "drift_distance/prediction": 0.0028620256048193736, "missing/prediction": 0.0, "reference_missing/prediction": 0.0}','{"basis": "12fba97da6e7e31c2f44d22d66d579c5", "levels": {"number of rows/rows": 5.480638923341991, "relations between columns/_relations.0": 0.2570989873453116, "relations between columns/_relations.1": -0.7397899333759875, "relations between columns/_relations.2": 0.42635501121911656, "relations between columns/_relations.3": -0.22296219627673822, "relations between columns/_relations.4": 0.33749206620291256, "relations between columns/_relations.5": -1.6598468261179102, "relations between columns/_relations.6": -0.6129001461555692, "relations between columns/_relations.7": -1.0609538410316386, "carrier/missing": 0.0, "carrier/new": 0.0, "carrier/frequent": 0.30416666666666664, "carrier/second": 0.32083333333333336, "carrier/distance": 0.06663265842352735, "distance/missing": 0.0, "distance/level": 2841.941227364833, "distance/spread": 5.720082465591601, "distance/mean": 2841.80375, "distance/outside": 1.0, "distance/mode": -0.2962442322141823, "distance/distance": 6.910374033934819, "hour/missing": 0.0, "hour/level": 11.1875, "hour/spread": 1.947631777733568, "hour/mean": 11.1875, "hour/outside": 0.0, "hour/mode": -0.3, "hour/distance": 0.13666279342675947, "output.probabilities.0/missing": 0.0, "output.probabilities.0/level": 0.5705705418822422, "output.probabilities.0/spread": -0.9817200766686344, "output.probabilities.0/mean": 0.5707244494309027, "output.probabilities.0/outside": 0.029166666666666667, "output.probabilities.0/mode": -0.12908458391481625, "output.probabilities.0/distance": 0.03536365864295537, "output.probabilities.1/missing": 0.0, "output.probabilities.1/level": 0.4294294585979063, "output.probabilities.1/spread": -0.9817200810269954, "output.probabilities.1/mean": 0.4292755541702111, "output.probabilities.1/outside": 0.029166666666666667, "output.probabilities.1/mode": -0.13466966849313744, "output.probabilities.1/distance": 0.03536366225964667, "prediction/missing": 0.0, "prediction/new": 0.0, "prediction/frequent": 0.575, "prediction/second": 0.425, "prediction/distance": 0.0028620256048193736}, "alarms": ["distance"], "accepted": [], "shifts": {}, "outcomes": {"distance": ["range", "drift", 104.96034609989306, 5.631817434758355], "relations between columns": ["distribution", "no drift", 11.337993185619334, 3.436410648611123], "output.probabilities.0": ["range", "no drift", 2.542749162749353, 5.900046025241855], "output.probabilities.1": ["range", "no drift", 2.542749162749353, 5.900046025241855], "hour": ["distribution", "no drift", 1.703696267850602, 3.5429864358179053], "carrier": ["distribution", "no drift", 1.6367209225550579, 3.7491415936208123], "prediction": ["distribution", "no drift", 0.08730187609026437, 3.640055264555335], "": ["distribution", "drift", 90.15742463909537, 3.524885571389631]}, "effects": {"distance": -0.05807554523150126}}','2026-11-04 01:00:00.000000','2026-11-04 01:00:00.000000');
INSERT INTO "onnxserve_monitor_windows" VALUES(3,'flights','accuracy','2026-11-02 00:00:00.000000','2026-11-03 00:00:00.000000',1,0,'judged','kept','accuracy: 0.9333 on 240 rows (worth 44 independent rows), 0.6805 to 0.9978 (Clopper-Pearson, confidence 0.9997); required is accuracy>=0.6; the clock of agent vm-dac0dcafb003 is an hour or more ahead: its rows are not waited for',240,240,'1c7661c3583a5a787d495bd65de7ff63',0,NULL,'097d900e957d4e53bf28a35a6a222977','','{"rows": 240.0, "labelled_rows": 240.0, "labelled_share": 1.0, "accuracy": 0.9333333333333333, "accuracy_low": 0.680463401290899, "accuracy_high": 0.9978392173939131, "f1": 0.9316239316239316, "f1_low": 0.736763507674434, "f1_high": 1.0551395986963725, "precision": 0.9083333333333333, "precision_low": 0.5670249985536187, "precision_high": 0.9981298414601224, "recall": 0.956140350877193, "recall_low": 0.7946653705021572, "recall_high": 0.9977347281509791, "roc_auc": 0.9860763018657756, "roc_auc_low": 0.8784810341487769, "roc_auc_high": 0.9985607012433564, "log_loss": 0.20746715629209056, "log_loss_low": 0.13561559456718833, "log_loss_high": 0.2861586130159888, "brier": 0.05666854371185619, "brier_low": 0.02810103745481482, "brier_high": 0.0900372261386832}','{"basis": "labels: None", "levels": {"accuracy/metric": 0.9333333333333333, "/labelled": 1.0, "late/label": 0.525, "late/predicted": 0.5, "on time/label": 0.475, "on time/predicted": 0.5, "/rows": 240.0}, "alarms": [], "accepted": [], "shifts": {}, "outcomes": {"accuracy": ["criterion", "kept", 0.9333333333333333, 0.6]}, "effects": {}}','2026-11-04 01:00:00.000000','2026-11-04 01:00:00.000000');
INSERT INTO "onnxserve_monitor_windows" VALUES(4,'flights','accuracy','2026-11-03 00:00:00.000000','2026-11-04 00:00:00.000000',1,0,'judged','kept','accuracy: 0.9125 on 240 rows (worth 145 independent rows), 0.7917 to 0.9741 (Clopper-Pearson, confidence 0.9997); required is accuracy>=0.6; the clock of agent vm-dac0dcafb003 is an hour or more ahead: its rows are not waited for',240,240,'a1ec5e18af6c2362e0d883e65754b603',0,NULL,'ce73f4f350af4073bdf4bd88abf953a7','','{"rows": 240.0, "labelled_rows": 240.0, "labelled_share": 1.0, "accuracy": 0.9125, "accuracy_low": 0.7917472956578747, "accuracy_high": 0.9741250966483211, "f1": 0.9032258064516129, "f1_low": 0.8030295255775206, "f1_high": 0.9795362163461449, "precision": 0.9607843137254902, "precision_low": 0.6642352312531855, "precision_high": 0.9999616254277475, "recall": 0.8521739130434782, "recall_low": 0.6107034586747302, "recall_high": 0.9718215987694636, "roc_auc": 0.9878260869565217, "roc_auc_low": 0.9358418990335966, "roc_auc_high": 0.9977895060768762, "log_loss": 0.2127094941346715, "log_loss_low": 0.11963671222801919, "log_loss_high": 0.31773321041495073, "brier": 0.05930363478198982, "brier_low": 0.018125974297260664, "brier_high": 0.10616818037656298}','{"basis": "labels: None", "levels": {"accuracy/metric": 0.9125, "/labelled": 1.0, "late/label": 0.5208333333333334, "late/predicted": 0.575, "on time/label": 0.4791666666666667, "on time/predicted": 0.425, "/rows": 240.0}, "alarms": [], "accepted": [], "shifts": {}, "outcomes": {"accuracy": ["criterion", "kept", 0.9125, 0.6]}, "effects": {}}','2026-11-04 01:00:00.000000','2026-11-04 01:00:00.000000');
INSERT INTO "onnxserve_monitor_windows" VALUES(5,'flights','level','2026-11-02 00:00:00.000000','2026-11-03 00:00:00.000000',1,0,'judged','not judged','the window has 24 requests; min_rows is 30; the clock of agent vm-dac0dcafb003 is an hour or more ahead: its rows are not waited for',24,240,'af6bd465a0fae172ad8fa2dec953970f',0,NULL,'b02585f35f99490382a11f2cfb7f98bd','','{"rows": 24.0}','{"basis": "", "levels": {}, "alarms": [], "accepted": [], "shifts": {}, "outcomes": {}, "effects": {}}','2026-11-04 01:00:00.000000','2026-11-04 01:00:00.000000');
INSERT INTO "onnxserve_monitor_windows" VALUES(6,'flights','level','2026-11-03 00:00:00.000000','2026-11-04 00:00:00.000000',1,0,'judged','not judged','the window has 24 requests; min_rows is 30; the clock of agent vm-dac0dcafb003 is an hour or more ahead: its rows are not waited for',24,240,'eb564ac20d17b6cf0abed360011bf295',0,NULL,'75cb876d776f402c969db69f1cea8180','','{"rows": 24.0}','{"basis": "", "levels": {}, "alarms": [], "accepted": [], "shifts": {}, "outcomes": {}, "effects": {}}','2026-11-04 01:00:00.000000','2026-11-04 01:00:00.000000');
INSERT INTO "onnxserve_monitor_windows" VALUES(7,'flights','daily','2026-11-03 00:00:00.000000','2026-11-04 00:00:00.000000',2,1,'judged','drift','distance: out of range 0.4% → 100.0%, more above; changes the probability of on time by -0.058 on average, and the class of 5.4% of the rows; since 3 November 2026',240,240,'eb564ac20d17b6cf0abed360011bf295',0,NULL,'339e71561301448c9ac718ba9f3affd9','','{"rows": 240.0, "reference_rows": 600.0, "is_drift": 1.0, "p_value": 3.3567273509006266e-09, "statistic": 90.15742463909537, "threshold": 3.524885571389631, "blocks": 90.0, "false_alarm_rate": 0.05, "share_of_drifted_columns": 0.16666666666666666, "drift_score/distance": 104.96034609989306, "drift_distance/distance": 6.910374033934819, "missing/distance": 0.0, "reference_missing/distance": 0.0016666666666666668, "drift_score/relations between columns": 11.337993185619334, "drift_distance/relations between columns": 0.5469822027999883, "drift_score/hour": 1.703696267850602, "drift_distance/hour": 0.13666279342675947, "missing/hour": 0.0, "reference_missing/hour": 0.0, "drift_score/carrier": 1.6367209225550579, "drift_distance/carrier": 0.06663265842352735, "missing/carrier": 0.0, "reference_missing/carrier": 0.0, "drift_score/output.probabilities.0": 2.542749162749353, "drift_distance/output.probabilities.0": 0.03536365864295537, "missing/output.probabilities.0": 0.0, "reference_missing/output.probabilities.0": 0.0, "drift_score/output.probabilities.1": 2.542749162749353, "drift_distance/output.probabilities.1": 0.03536366225964667, "missing/output.probabilities.1": 0.0, "reference_missing/output.probabilities.1": 0.0, "drift_score/prediction": 0.08730187609026437, "drift_distance/prediction": 0.0028620256048193736, "missing/prediction": 0.0, "reference_missing/prediction": 0.0}','{"basis": "12fba97da6e7e31c2f44d22d66d579c5", "levels": {"number of rows/rows": 5.480638923341991, "relations between columns/_relations.0": 0.2570989873453116, "relations between columns/_relations.1": -0.7397899333759875, "relations between columns/_relations.2": 0.42635501121911656, "relations between columns/_relations.3": -0.22296219627673822, "relations between columns/_relations.4": 0.33749206620291256, "relations between columns/_relations.5": -1.6598468261179102, "relations between columns/_relations.6": -0.6129001461555692, "relations between columns/_relations.7": -1.0609538410316386, "carrier/missing": 0.0, "carrier/new": 0.0, "carrier/frequent": 0.30416666666666664, "carrier/second": 0.32083333333333336, "carrier/distance": 0.06663265842352735, "distance/missing": 0.0, "distance/level": 2841.941227364833, "distance/spread": 5.720082465591601, "distance/mean": 2841.80375, "distance/outside": 1.0, "distance/mode": -0.2962442322141823, "distance/distance": 6.910374033934819, "hour/missing": 0.0, "hour/level": 11.1875, "hour/spread": 1.947631777733568, "hour/mean": 11.1875, "hour/outside": 0.0, "hour/mode": -0.3, "hour/distance": 0.13666279342675947, "output.probabilities.0/missing": 0.0, "output.probabilities.0/level": 0.5705705418822422, "output.probabilities.0/spread": -0.9817200766686344, "output.probabilities.0/mean": 0.5707244494309027, "output.probabilities.0/outside": 0.029166666666666667, "output.probabilities.0/mode": -0.12908458391481625, "output.probabilities.0/distance": 0.03536365864295537, "output.probabilities.1/missing": 0.0, "output.probabilities.1/level": 0.4294294585979063, "output.probabilities.1/spread": -0.9817200810269954, "output.probabilities.1/mean": 0.4292755541702111, "output.probabilities.1/outside": 0.029166666666666667, "output.probabilities.1/mode": -0.13466966849313744, "output.probabilities.1/distance": 0.03536366225964667, "prediction/missing": 0.0, "prediction/new": 0.0, "prediction/frequent": 0.575, "prediction/second": 0.425, "prediction/distance": 0.0028620256048193736}, "alarms": ["distance"], "accepted": ["distance"], "shifts": {}, "outcomes": {"distance": ["range", "drift", 104.96034609989306, 5.631817434758355], "relations between columns": ["distribution", "no drift", 11.337993185619334, 3.436410648611123], "output.probabilities.0": ["range", "no drift", 2.542749162749353, 5.900046025241855], "output.probabilities.1": ["range", "no drift", 2.542749162749353, 5.900046025241855], "hour": ["distribution", "no drift", 1.703696267850602, 3.5429864358179053], "carrier": ["distribution", "no drift", 1.6367209225550579, 3.7491415936208123], "prediction": ["distribution", "no drift", 0.08730187609026437, 3.640055264555335], "": ["distribution", "drift", 90.15742463909537, 3.524885571389631]}, "effects": {"distance": -0.05807554523150126}}','2026-11-04 02:00:00.000000','2026-11-04 02:00:00.000000');
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
INSERT INTO "onnxserve_retrainings" VALUES(1,'flights','daily','flight-delay','{"kind": "alarm", "monitor": "daily", "monitor_kind": "drift", "window": "2026-11-03/2026-11-04", "revision": 1, "verdict": "drift", "version": "1", "run_id": "463a44bf8bc54a76b120b72b2bb6e777", "report": "run 463a44bf8bc54a76b120b72b2bb6e777", "why": "monitor daily, 2026-11-03/2026-11-04: drift: distance: out of range 0.4% \u2192 100.0%, more above; changes the probability of on time by -0.058 on average, and the class of 5.4% of the rows; since 3 November 2026"}','{"endpoint": "flights", "model": "flight-delay", "base_version": "1", "project": "/srv/onnxserve/project", "entry_point": "train", "mode": "full", "env_manager": "local", "timeout": 21600.0, "then": "propose", "steps": "10,50,100", "step_every": "5m", "every": "1d", "window": "2026-11-03/2026-11-04", "parameters": {}, "min_requests": 100, "actor": "controller@laptop", "sample": null}','proposed','34565954f3994de5a6cc7fe7ae2883c4','3',NULL,'','the version passed its gate without an evaluation (checked: parity, signature; not checked: evaluation: the policy skips it; not checked: robustness: the policy skips it; not checked: budget: the policy skips it); `onnxserve rollout start flights --to 3` rolls it out','{"attempt": 1, "host": "laptop 70d1d2d1", "rows": 480, "data_digest": "9bbad4f431ca8f8bd9d18d0530759b0fad6dfc07927a17925e3943cfe5c5c3fd", "held_out_rows": 0, "window": "2026-11-03/2026-11-04", "started_at": "2026-11-04T02:00:00+00:00", "gate": "passed without an evaluation", "gate_reason": "checked: parity, signature; not checked: evaluation: the policy skips it; not checked: robustness: the policy skips it; not checked: budget: the policy skips it", "gate_report": "1faa1f460fed4d3e9899f472044af8a8/gate_report.html", "against": "1", "gated_at": "2026-11-04T02:00:00+00:00", "compared": true}','2026-11-04 01:00:00.000000','2026-11-04 02:00:00.000003','2026-11-04 02:00:00.000000');
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
INSERT INTO "onnxserve_rollouts" VALUES(1,'flights','{"endpoint": "flights", "main": "champion", "candidate": "candidate", "shadow": "", "to_uri": "models:/flight-delay/2", "model": "flight-delay", "version": "2", "before_uri": "models:/flight-delay@champion", "before_version": "1", "kind": "alias", "selector": "champion", "steps": [50, 100], "every": 1.0, "abort_on": "error_rate>20%", "level": 0.05, "min_requests": 5, "actor": "ada@laptop", "why": "it is new"}','promoted',1,'2026-11-04 02:00:00.000000','{"elapsed": 0.0, "current": {"requests": 3.0, "errors": 0.0}, "candidate": {"requests": 13.0, "errors": 0.0}, "criteria": {"error_rate>20%": {"figures": "0.00% of 13 requests to version 2 failed, 0.00% of 3 to version 1", "log_evidence": -2.022, "log_evidence_needed": 4.382}}, "trace": [[0.0, 0, {"error_rate>20%": 0.0}], [0.0, 0, {"error_rate>20%": -0.196}], [0.0, 0, {"error_rate>20%": -0.2947}], [0.0, 0, {"error_rate>20%": -0.3977}], [0.0, 0, {"error_rate>20%": -0.4784}], [0.0, 1, {"error_rate>20%": 0.0}], [0.0, 1, {"error_rate>20%": -0.2802}], [0.0, 1, {"error_rate>20%": -0.3348}], [0.0, 1, {"error_rate>20%": -0.3813}], [0.0, 1, {"error_rate>20%": -0.4231}], [0.0, 1, {"error_rate>20%": -0.4614}], [0.0, 1, {"error_rate>20%": -0.4614}], [0.0, 1, {"error_rate>20%": -0.4614}]], "ledger": {"last": {"flights": {"current": {"requests": 81.0, "errors": 0.0, "timed": {"0.0005": 0.0, "0.001": 4.0, "0.0025": 71.0, "0.005": 77.0, "0.01": 78.0, "0.025": 80.0, "0.05": 80.0, "0.1": 80.0, "0.25": 81.0, "0.5": 81.0, "1.0": 81.0, "2.5": 81.0, "5.0": 81.0, "10.0": 81.0, "inf": 81.0}, "same": 0.0, "different": 0.0, "refused": 0.0}, "candidate": {"requests": 24.0, "errors": 0.0, "timed": {"0.0005": 0.0, "0.001": 0.0, "0.0025": 24.0, "0.005": 24.0, "0.01": 24.0, "0.025": 24.0, "0.05": 24.0, "0.1": 24.0, "0.25": 24.0, "0.5": 24.0, "1.0": 24.0, "2.5": 24.0, "5.0": 24.0, "10.0": 24.0, "inf": 24.0}, "same": 0.0, "different": 0.0, "refused": 0.0}, "shadow": {"requests": 0.0, "errors": 0.0, "timed": {}, "same": 0.0, "different": 0.0, "refused": 0.0}}}, "step": {"current": {"requests": 3.0, "errors": 0.0, "timed": {"0.0005": 0.0, "0.001": 0.0, "0.0025": 2.0, "0.005": 3.0, "0.01": 3.0, "0.025": 3.0, "0.05": 3.0, "0.1": 3.0, "0.25": 3.0, "0.5": 3.0, "1.0": 3.0, "2.5": 3.0, "5.0": 3.0, "10.0": 3.0, "inf": 3.0}, "same": 0.0, "different": 0.0, "refused": 0.0}, "candidate": {"requests": 13.0, "errors": 0.0, "timed": {"0.0005": 0.0, "0.001": 0.0, "0.0025": 13.0, "0.005": 13.0, "0.01": 13.0, "0.025": 13.0, "0.05": 13.0, "0.1": 13.0, "0.25": 13.0, "0.5": 13.0, "1.0": 13.0, "2.5": 13.0, "5.0": 13.0, "10.0": 13.0, "inf": 13.0}, "same": 0.0, "different": 0.0, "refused": 0.0}, "shadow": {"requests": 0.0, "errors": 0.0, "timed": {}, "same": 0.0, "different": 0.0, "refused": 0.0}}, "current": {"all": {"requests": 81.0, "errors": 0.0, "timed": {"0.0005": 0.0, "0.001": 4.0, "0.0025": 71.0, "0.005": 77.0, "0.01": 78.0, "0.025": 80.0, "0.05": 80.0, "0.1": 80.0, "0.25": 81.0, "0.5": 81.0, "1.0": 81.0, "2.5": 81.0, "5.0": 81.0, "10.0": 81.0, "inf": 81.0}, "same": 0.0, "different": 0.0, "refused": 0.0}, "before": {"requests": 78.0, "errors": 0.0, "timed": {"0.0005": 0.0, "0.001": 4.0, "0.0025": 69.0, "0.005": 74.0, "0.01": 75.0, "0.025": 77.0, "0.05": 77.0, "0.1": 77.0, "0.25": 78.0, "0.5": 78.0, "1.0": 78.0, "2.5": 78.0, "5.0": 78.0, "10.0": 78.0, "inf": 78.0}, "same": 0.0, "different": 0.0, "refused": 0.0}}, "tests": {"error_rate>20%": [[-0.634272134202616, -1.2390323374562233, -2.3701802383214106, -4.374139076075768, -7.641226643727548, -13.38505242335506, -24.919993958366796], [0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]]}}}','version 2 is served instead of 1',14,'2026-11-04 02:00:00.000000','2026-11-04 02:00:00.000000','2026-11-04 02:00:00.000000');
INSERT INTO "onnxserve_rollouts" VALUES(2,'flights','{"endpoint": "flights", "main": "champion", "candidate": "candidate", "shadow": "candidate-shadow", "to_uri": "models:/flight-delay/1", "model": "flight-delay", "version": "1", "before_uri": "models:/flight-delay@champion", "before_version": "2", "kind": "alias", "selector": "champion", "steps": [50, 100], "every": 3600.0, "abort_on": "error_rate>20%,p99>50x,disagreement>90%", "level": 0.05, "min_requests": 1000, "actor": "ada@laptop", "why": ""}','paused',0,'2026-11-04 02:00:00.000000','{"elapsed": 1.52, "current": {"requests": 16.0, "errors": 0.0}, "candidate": {"requests": 12.0, "errors": 0.0}, "shadow": {"same": 17.0, "different": 0.0}, "criteria": {"error_rate>20%": {"figures": "0.00% of 12 requests to version 1 failed, 0.00% of 16 to version 2", "log_evidence": -1.94, "log_evidence_needed": 4.787}, "p99>50x": {"figures": "not judged: version 2 has too few timed requests", "log_evidence": 0.0, "log_evidence_needed": 4.787}, "disagreement>90%": {"figures": "version 1 answers 0.00% of 17 rows differently from the current version", "log_evidence": -5.34, "log_evidence_needed": 4.787}}, "trace": [[0.0, 0, {"error_rate>20%": 0.0, "p99>50x": 0.0, "disagreement>90%": 0.0}], [0.0, 0, {"error_rate>20%": -0.4053, "p99>50x": 0.0, "disagreement>90%": -1.1155}], [0.0, 0, {"error_rate>20%": -0.4053, "p99>50x": 0.0, "disagreement>90%": -1.1155}]], "ledger": {"last": {"flights": {"current": {"requests": 58.0, "errors": 0.0, "timed": {"0.0005": 0.0, "0.001": 3.0, "0.0025": 57.0, "0.005": 57.0, "0.01": 58.0, "0.025": 58.0, "0.05": 58.0, "0.1": 58.0, "0.25": 58.0, "0.5": 58.0, "1.0": 58.0, "2.5": 58.0, "5.0": 58.0, "10.0": 58.0, "inf": 58.0}, "same": 0.0, "different": 0.0, "refused": 0.0}, "candidate": {"requests": 12.0, "errors": 0.0, "timed": {"0.0005": 0.0, "0.001": 0.0, "0.0025": 11.0, "0.005": 12.0, "0.01": 12.0, "0.025": 12.0, "0.05": 12.0, "0.1": 12.0, "0.25": 12.0, "0.5": 12.0, "1.0": 12.0, "2.5": 12.0, "5.0": 12.0, "10.0": 12.0, "inf": 12.0}, "same": 0.0, "different": 0.0, "refused": 0.0}, "shadow": {"requests": 0.0, "errors": 0.0, "timed": {}, "same": 34.0, "different": 0.0, "refused": 0.0}}}, "step": {"current": {"requests": 16.0, "errors": 0.0, "timed": {"0.0005": 0.0, "0.001": 2.0, "0.0025": 15.0, "0.005": 15.0, "0.01": 16.0, "0.025": 16.0, "0.05": 16.0, "0.1": 16.0, "0.25": 16.0, "0.5": 16.0, "1.0": 16.0, "2.5": 16.0, "5.0": 16.0, "10.0": 16.0, "inf": 16.0}, "same": 0.0, "different": 0.0, "refused": 0.0}, "candidate": {"requests": 12.0, "errors": 0.0, "timed": {"0.0005": 0.0, "0.001": 0.0, "0.0025": 11.0, "0.005": 12.0, "0.01": 12.0, "0.025": 12.0, "0.05": 12.0, "0.1": 12.0, "0.25": 12.0, "0.5": 12.0, "1.0": 12.0, "2.5": 12.0, "5.0": 12.0, "10.0": 12.0, "inf": 12.0}, "same": 0.0, "different": 0.0, "refused": 0.0}, "shadow": {"requests": 0.0, "errors": 0.0, "timed": {}, "same": 17.0, "different": 0.0, "refused": 0.0}}, "current": {"all": {"requests": 58.0, "errors": 0.0, "timed": {"0.0005": 0.0, "0.001": 3.0, "0.0025": 57.0, "0.005": 57.0, "0.01": 58.0, "0.025": 58.0, "0.05": 58.0, "0.1": 58.0, "0.25": 58.0, "0.5": 58.0, "1.0": 58.0, "2.5": 58.0, "5.0": 58.0, "10.0": 58.0, "inf": 58.0}, "same": 0.0, "different": 0.0, "refused": 0.0}, "before": {"requests": 42.0, "errors": 0.0, "timed": {"0.0005": 0.0, "0.001": 1.0, "0.0025": 42.0, "0.005": 42.0, "0.01": 42.0, "0.025": 42.0, "0.05": 42.0, "0.1": 42.0, "0.25": 42.0, "0.5": 42.0, "1.0": 42.0, "2.5": 42.0, "5.0": 42.0, "10.0": 42.0, "inf": 42.0}, "same": 0.0, "different": 0.0, "refused": 0.0}}, "tests": {"error_rate>20%": [[-0.5854819700331841, -1.1437221576518983, -2.1878586815274557, -4.037666839454555, -7.053439978825429, -12.3554330061739, -23.003071346184733], [0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]], "p99>50x": [[0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]], "disagreement>90%": [[-3.4499943479437354, -6.316580459352212, -10.911516064930712, -17.503530092079693, -25.94295715941584, -37.54066502988767, -56.092073374056135], [0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]]}}}','paused by ada@laptop: it is Friday',4,'2026-11-04 02:00:00.000000','2026-11-04 02:00:00.000000',NULL);
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
CREATE INDEX ix_onnxserve_audit_events_chain ON onnxserve_audit_events (model, id);
CREATE INDEX ix_onnxserve_audit_events_deleted ON onnxserve_audit_events (endpoint) WHERE action = 'delete';
CREATE INDEX ix_onnxserve_rollouts_endpoint ON onnxserve_rollouts (endpoint);
CREATE UNIQUE INDEX ux_onnxserve_rollouts_live ON onnxserve_rollouts (endpoint) WHERE ended_at IS NULL;
CREATE INDEX ix_onnxserve_monitor_windows_counted ON onnxserve_monitor_windows (by_hand, endpoint, monitor, state, verdict, attempts, updated_at);
CREATE INDEX ix_onnxserve_monitor_windows_state ON onnxserve_monitor_windows (state);
CREATE INDEX ix_onnxserve_alerts_fingerprint ON onnxserve_alerts (fingerprint);
CREATE INDEX ix_onnxserve_alerts_endpoint ON onnxserve_alerts (endpoint);
CREATE INDEX ix_onnxserve_silences_endpoint ON onnxserve_silences (endpoint);
CREATE INDEX ix_onnxserve_retrainings_model ON onnxserve_retrainings (model);
CREATE INDEX ix_onnxserve_retrainings_endpoint ON onnxserve_retrainings (endpoint);
CREATE INDEX ix_onnxserve_registry_changes_changed_at ON onnxserve_registry_changes (changed_at);
COMMIT;
