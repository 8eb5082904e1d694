// What arrives when is in the plan (loadtests/spikes/plan.py); what an arrival does, and what must hold, is here.
//   SPIKE=plan.json HEARD=heard.json k6 run spike.js
import http from 'k6/http';
import exec from 'k6/execution';
import { Counter, Trend } from 'k6/metrics';

const CLICK_P99_MS = 250;
const CONVERSION_P99_MS = 500;
const REPORT_P95_MS = 2000;
const SAMPLED = 200; // of so many click ids one is told
const BUYERS_OF_A_DAY = 0.05;
// k6 stands still while it wakes the connections of a scenario, 80 ms for 200 of them on one core: so it does that
// earlier, and what arrives until the stage begins does nothing
const LEAD_S = 3;

const plan = JSON.parse(open(__ENV.SPIKE));
const stages = Object.fromEntries(plan.stages.map((stage) => [stage.name, stage]));
const answered = new Counter('answered');
const accepted = new Counter('accepted');
const reports = new Counter('reports');
const wrong = new Counter('wrong');
const took = new Trend('took', true);

const readers = plan.partner_keys.map((key) => ({ headers: { Authorization: `Bearer ${key}` }, timeout: '20s' }));
const visitor = { headers: plan.headers, redirects: 0, timeout: '20s' };
const shop = { headers: { Authorization: `Bearer ${plan.token}`, 'Content-Type': 'application/json' }, timeout: '20s' };

export const options = {
  scenarios: Object.fromEntries(plan.stages.map((stage) => [stage.name, scenario(stage)])),
  thresholds: Object.assign(
    { dropped_iterations: ['count==0'], wrong: ['count==0'] },
    ...plan.stages.map((stage) => ({ [`took{scenario:${stage.name}}`]: [limit(stage.kind)] })),
  ),
  discardResponseBodies: true,
  systemTags: ['scenario'], // a series for each url would fill the memory
  summaryTrendStats: ['count', 'p(50)', 'p(95)', 'p(99)'],
};

function lead(stage) {
  return Math.min(LEAD_S, stage.start_s);
}

function scenario(stage) {
  const [first, last] = [stage.from_per_s, stage.to_per_s].map(Math.round); // rates are whole numbers here
  const early = lead(stage);
  const shared = {
    startTime: `${stage.start_s - early}s`,
    timeUnit: '1s',
    exec: stage.kind,
    gracefulStop: '5s',
    preAllocatedVUs: stage.connections,
    maxVUs: stage.connections * 4,
  };
  if (first === last) {
    return { ...shared, executor: 'constant-arrival-rate', rate: last, duration: `${early + stage.for_s}s` };
  }
  const stages = [
    { target: first, duration: `${early}s` },
    { target: last, duration: `${stage.for_s}s` },
  ];
  return { ...shared, executor: 'ramping-arrival-rate', startRate: first, stages };
}

function limit(kind) {
  return { read: `p(95)<${REPORT_P95_MS}`, buy: `p(99)<${CONVERSION_P99_MS}` }[kind] || `p(99)<${CLICK_P99_MS}`;
}

export function setup() {
  console.log('began'); // whoever freezes a broker counts from here
}

export const warm = () => begun() && click(anyWarm());
export const hot = () => begun() && click(`${plan.warm_code}0`);
export const cold = () => begun() && click(`${plan.cold_code}${exec.scenario.iterationInTest % plan.cold_links}`);

let bought = null; // the last click of this connection
export function buy() {
  if (begun()) {
    bought = bought || click(anyWarm());
    order(bought);
  }
}

export function day() {
  const id = warm();
  if (id && Math.random() < BUYERS_OF_A_DAY) {
    order(id);
  }
}

export function read() {
  if (!begun()) {
    return;
  }
  const key = readers[exec.scenario.iterationInTest % readers.length];
  const late = lateness();
  const answer = http.get(plan.api_url + plan.report, key);
  took.add(late + waited(answer));
  answer.status === 200 ? reports.add(1) : complain('report', answer);
}

function begun() {
  return Date.now() - exec.scenario.startTime >= lead(stages[exec.scenario.name]) * 1000;
}

function anyWarm() {
  return `${plan.warm_code}${Math.floor(Math.random() * plan.warm_links)}`;
}

function click(code) {
  const late = lateness();
  const answer = http.get(`${plan.edge_url}/c/${code}?sub1=k6-${__VU}&source_id=spike`, visitor);
  took.add(late + waited(answer));
  const id = /[?&]click_id=([\w-]+)/.exec(answer.headers.Location || '');
  if (answer.status !== 302 || !id) {
    complain('click', answer);
    return null;
  }
  answered.add(1);
  if (Math.random() * SAMPLED < 1) {
    console.log(`id ${id[1]}`);
  }
  return id[1];
}

function order(id) {
  const said = { click_id: id, order_id: `${plan.run}-${exec.scenario.name}-${exec.scenario.iterationInTest}` };
  const body = JSON.stringify({ ...said, amount_minor: 4990, currency: 'EUR' });
  const answer = http.post(`${plan.edge_url}/v1/conversions`, body, shop);
  took.add(waited(answer), { of: 'conversion' });
  answer.status === 200 || answer.status === 202 ? accepted.add(1) : complain('conversion', answer);
}

// From the moment the arrival was due, not from when a connection was free for it: k6 begins the n-th of a constant rate
// at its start + n/rate. Of a ramp the moments are not told.
function lateness() {
  const { from_per_s: first, to_per_s: last } = stages[exec.scenario.name];
  const due = exec.scenario.startTime + (exec.scenario.iterationInTest / Math.round(last)) * 1000;
  return first === last ? Math.max(0, Date.now() - due) : 0;
}

function waited(answer) {
  return answer.timings.blocked + answer.timings.connecting + answer.timings.duration;
}

function complain(what, answer) {
  wrong.add(1);
  console.log(`wrong ${what} ${answer.status} ${answer.error} in ${exec.scenario.name}`);
}

export function handleSummary(data) {
  const count = (name) => (data.metrics[name] ? data.metrics[name].values.count : 0);
  const of = (name) => data.metrics[`took{scenario:${name}}`].values;
  const said = (name) => ({ count: of(name).count, p50_ms: of(name)['p(50)'] || 0, p99_ms: of(name)['p(99)'] || 0 });
  const heard = {
    answered: count('answered'),
    accepted: count('accepted'),
    reports: count('reports'),
    wrong: count('wrong'),
    dropped: count('dropped_iterations'),
    crossed: crossed(data.metrics),
    stages: Object.fromEntries(plan.stages.map((stage) => [stage.name, said(stage.name)])),
  };
  return { [__ENV.HEARD]: JSON.stringify(heard) };
}

function crossed(metrics) {
  const judged = Object.entries(metrics).flatMap(([name, { thresholds }]) =>
    Object.entries(thresholds || {}).map(([threshold, { ok }]) => ({ threshold: `${name} ${threshold}`, ok })),
  );
  return judged.filter(({ ok }) => !ok).map(({ threshold }) => threshold);
}
