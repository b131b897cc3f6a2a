# Asks the endpoint `flights` over REST. ../README.md describes the commands and the settings.
library(httr2)

# Return a request with the key. It is sent again after Retry-After if the server is over a limit (429) or loads its
# model (503). An error contains the server's message.
server_request <- function(path) {
  request(Sys.getenv("URL")) |>
    req_url_path_append(path) |>
    req_headers(Authorization = paste("Bearer", Sys.getenv("KEY"))) |>
    req_timeout(5) |>
    req_retry(max_tries = 4, is_transient = \(response) resp_status(response) %in% c(429, 503)) |>
    req_error(body = \(response) unlist(resp_body_json(response)))
}

rows <- data.frame(carrier = c("UA", "AA"), distance = c(1400, 300), hour = c(22L, 9L))
late <- server_request("endpoints/flights/invocations") |>
  req_body_json(list(dataframe_records = rows), digits = NA) |>
  req_perform()
cat("REST:", unlist(resp_body_json(late)$predictions), "from version", resp_header(late, "X-Model-Version"), "\n")

tensor <- function(name, datatype, data) list(name = name, shape = I(length(data)), datatype = datatype, data = data)
inputs <- list(
  tensor("carrier", "BYTES", rows$carrier),
  tensor("distance", "FP64", rows$distance),
  tensor("hour", "INT64", rows$hour)
)
answer <- server_request("v2/models/flights/infer") |>
  req_body_json(list(inputs = inputs, outputs = list(list(name = "probabilities"))), digits = NA) |>
  req_perform() |>
  resp_body_json(simplifyVector = TRUE)
cat("V2:", unlist(answer$outputs$data), "from version", answer$model_version, "\n")

tryCatch(
  server_request("endpoints/flights/invocations") |>
    req_body_json(list(dataframe_records = rows[c("carrier", "distance")])) |>
    req_perform(),
  httr2_http_400 = \(error) cat("REST error:", resp_status(error$resp), conditionMessage(error), "\n")
)
